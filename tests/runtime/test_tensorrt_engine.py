"""What can be tried of TensorRT without it and a GPU: its cache, the choice of it, and what happens if it fails.

The package is stood in for by one that refuses every graph, as it does for an operator that it does not know, or by
one whose engines do sums on the CPU's memory.
"""

import ctypes
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deformer_core.errors import InputError
from deformer_core.runtime import engines, tensorrt_engine
from deformer_core.runtime.engines import TorchEngine, choose_engine, make_engine
from deformer_core.runtime.tensorrt_engine import BATCHES, build_plan, import_tensorrt, plan_path


@pytest.fixture
def refusing(monkeypatch):
    """A tensorrt whose parser refuses, on a machine whose GPU is the CPU."""

    class Parser:
        num_errors = 1

        def __init__(self, network, logger):
            pass

        def parse(self, graph):
            return False

        def get_error(self, index):
            return "no importer for Abacus"

    logger = type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None})
    builder = SimpleNamespace(create_network=lambda flags: None)
    module = SimpleNamespace(
        __version__="10.0",
        Logger=logger,
        Builder=lambda logger: builder,
        OnnxParser=Parser,
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: module)
    monkeypatch.setattr(tensorrt_engine.torch.cuda, "device", lambda device: torch.device("cpu"))
    monkeypatch.setattr(tensorrt_engine.torch.cuda, "get_device_name", lambda device: "Abacus 9000")
    monkeypatch.setattr(engines, "_torch_device", lambda device: "meta")  # any GPU's name; torch makes no model on it


class SumContext:
    """Runs a model whose one output `camera` (B, 3) is the box plus the sum of the crop's bytes."""

    def __init__(self):
        self.shapes, self.addresses, self.crops_read = {}, {}, []

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def get_tensor_shape(self, name):
        return self.shapes["box"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        crops = self._memory("crops", ctypes.c_uint8, self.shapes["crops"])
        box, out = (self._memory(name, ctypes.c_float, self.shapes["box"]) for name in ("box", "camera"))
        out[:] = box + crops.sum((1, 2, 3), np.float32)[:, None]
        self.crops_read.append(self.addresses["crops"])
        return True

    def _memory(self, name, kind, shape):
        count = int(np.prod(shape))
        return np.ctypeslib.as_array((kind * count).from_address(self.addresses[name])).reshape(shape)


@pytest.fixture
def context(monkeypatch):
    """What engines run in, with a tensorrt and a torch.cuda of the CPU."""
    made = SumContext()
    names = ["crops", "box", "camera"]
    engine = SimpleNamespace(
        create_execution_context=lambda: made, num_io_tensors=len(names), get_tensor_name=lambda index: names[index]
    )
    module = SimpleNamespace(
        __version__="10.0",
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    waited = SimpleNamespace(cuda_stream=0, wait_stream=lambda other: None)
    for name, value in (
        ("device", lambda device: nullcontext()),
        ("stream", lambda stream: nullcontext()),
        ("current_stream", lambda device: None),
        ("Stream", lambda: waited),
    ):
        monkeypatch.setattr(tensorrt_engine.torch.cuda, name, value)
    return made


def test_crops_on_the_gpu_are_read_where_they_are(context, rng):
    engine = tensorrt_engine.TensorRtEngine(b"", 8, "cpu")
    crops = torch.from_numpy(rng.integers(0, 256, (BATCHES[-1] + 5, 8, 8, 3), np.uint8))
    box = rng.uniform(-1, 1, (len(crops), 3)).astype(np.float32)
    expected = box + crops.numpy().sum((1, 2, 3), np.float32)[:, None]
    np.testing.assert_allclose(engine(crops, box)["camera"], expected, rtol=1e-6)
    assert context.crops_read == [crops.data_ptr(), crops[BATCHES[-1] :].data_ptr()]
    np.testing.assert_allclose(engine(crops.numpy(), box)["camera"], expected, rtol=1e-6)
    assert engine.crop_device == torch.device("cpu")


def test_an_engine_that_does_not_fit_is_told(context, monkeypatch):
    full = SimpleNamespace(create_execution_context=lambda: None)
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: full)
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", lambda logger: runtime)
    with pytest.raises(InputError, match="no memory for the TensorRT engine"):
        tensorrt_engine.TensorRtEngine(b"", 8, "cpu")


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(InputError, match=r"pip install 'deformer\[gpu\]'"):
        import_tensorrt()


def test_an_engine_is_named_by_all_it_depends_on(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path))
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    first.write_bytes(b"graph")
    second.write_bytes(b"another")
    known = plan_path(first, "H200", "10.1", "float16")
    assert known == plan_path(first, "H200", "10.1", "float16") and known.parent == tmp_path / "tensorrt"
    others = {
        plan_path(second, "H200", "10.1", "float16"),
        plan_path(first, "A100", "10.1", "float16"),
        plan_path(first, "H200", "10.2", "float16"),
        plan_path(first, "H200", "10.1", "bfloat16"),
        known,
    }
    assert len(others) == 5
    first.write_bytes(b"retrained")
    assert plan_path(first, "H200", "10.1", "float16") not in others


@pytest.mark.usefixtures("refusing")
def test_auto_takes_it_where_there_is_a_gpu_and_falls_back_with_one_line(checkpoint, monkeypatch, tmp_path, caplog):
    assert choose_engine(checkpoint)[:2] == ("tensorrt", "meta")
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"")
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "cached_graph", lambda *_: graph)
    made = []
    monkeypatch.setattr(engines, "TorchEngine", lambda model, device, *_: made.append(device) or TorchEngine(model))
    engine = make_engine(checkpoint)
    assert "TensorRT cannot be used: TensorRT cannot read the graph: no importer for Abacus" in engine.description
    assert made == ["meta"] and caplog.text.count("TensorRT cannot be used") == 1
    with pytest.raises(InputError, match="Abacus"):
        make_engine(checkpoint, "tensorrt")


def test_what_float16_cannot_hold_is_built_in_bfloat16(checkpoint, model, monkeypatch, caplog):
    """An engine is stood in for by torch, whose backbone's values leave float16."""
    reference = TorchEngine(model)
    built = []

    def build(graph, image_size, device, precision):
        def engine(crops, box):
            error = {"float16": np.float32(np.nan), "bfloat16": np.float32(0.01)}[precision]
            return {name: array + error for name, array in reference(crops, box).items()}

        built.append(precision)
        engine.image_size, engine.description = image_size, precision
        return engine

    monkeypatch.setattr(engines, "choose_engine", lambda *_: engines.Choice("tensorrt", "cpu", "asked for"))
    monkeypatch.setattr(engines, "cached_graph", lambda *_: None)
    monkeypatch.setattr(engines, "load_or_build", build)
    assert make_engine(checkpoint, "tensorrt").description == "bfloat16 (asked for)"
    assert built == ["float16", "bfloat16"] and "float16 differs from torch by nan mm" in caplog.text


@pytest.mark.usefixtures("refusing")
def test_a_refused_graph_is_told(tmp_path):
    with pytest.raises(InputError, match="no importer for Abacus"):
        build_plan(b"", 256, tmp_path / "timing.cache")
