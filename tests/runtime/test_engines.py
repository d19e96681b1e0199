"""All engines give the same numbers, and one always can be had."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deformer_core.cli import ENGINES as OFFERED
from deformer_core.errors import InputError
from deformer_core.runtime import engines
from deformer_core.runtime.engines import (
    BUCKETS,
    ENGINES,
    CompiledEngine,
    TorchEngine,
    choose_engine,
    graph_path,
    make_engine,
    split_batch,
)
from deformer_core.runtime.export import MASKED, PORTABLE, check_graph
from deformer_core.runtime.onnx_engine import CPU, GPU_PROVIDERS, OnnxEngine, graph_providers
from deformer_core.runtime.parity import TOLERANCE, check_parity, difference


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("DEFORMER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def graph(checkpoint, cache):
    """The exported graph of the checkpoint; takes half a minute."""
    make_engine(checkpoint, "onnxruntime", threads=1)
    return graph_path(checkpoint)


def random_input(rng, batch, size):
    crops = rng.integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    box = np.column_stack([rng.uniform(-0.5, 0.5, (batch, 2)), rng.uniform(0.1, 0.3, batch)]).astype(np.float32)
    return crops, box


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("batch", [1, 3])
def test_engines_agree(model, checkpoint, graph, rng, batch):
    eager, exported = TorchEngine(model, threads=1), OnnxEngine(graph, threads=1)
    assert eager.image_size == exported.image_size == 192
    crops, box = random_input(rng, batch, 192)
    ours, theirs = make_engine(checkpoint, "torch")(crops, box), exported(crops, box)
    assert ours.keys() == theirs.keys() == eager(crops, box).keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype == np.float32
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)
    assert ours["vertices_full"].shape == (batch, 12272, 3)


def test_crops_may_be_tensors(model, checkpoint, graph, rng):
    """As they come from the GPU that crops are cut on; an engine on the CPU wants none, but takes them."""
    crops, box = random_input(rng, 2, 192)
    for engine in (TorchEngine(model), OnnxEngine(graph, 1)):
        assert engine.crop_device is None
        assert_same(engine(torch.from_numpy(crops), box), engine(crops, box))


def test_the_graph_is_portable(graph):
    check_graph(onnx.load(graph))
    model = onnx.load(graph)
    assert not PORTABLE & {"GridSample", "If", "Loop", "Scan"}
    for value in model.graph.input:
        assert value.type.tensor_type.shape.dim[0].dim_param  # any number of people
    readers = {node.op_type for node in model.graph.node if "crops" in node.input}
    assert readers <= {"Cast", "Shape"}  # TensorRT takes bytes as an input and casts them, no more
    model.graph.node[0].op_type = "GridSample"
    with pytest.raises((RuntimeError, onnx.checker.ValidationError)):
        check_graph(model)


def test_masks_of_graphs_make_no_denormal_numbers(graph):
    """Minus infinity would: ONNX Runtime's exponential gives 1e-39 for it, whatever else is in the row."""
    arrays = [onnx.numpy_helper.to_array(constant) for constant in onnx.load(graph).graph.initializer]
    numbers = np.concatenate([array.ravel() for array in arrays if array.dtype.kind == "f"])
    assert np.isfinite(numbers).all() and (numbers == MASKED).sum() > 1000
    # Beside a token of the highest score a masked one counts for nothing, and is far from the least normal number.
    assert np.finfo(np.float32).tiny * 1e6 < np.exp(MASKED) < np.finfo(np.float32).eps ** 3


def test_parity_on_the_shipped_photo(checkpoint, graph):
    reference = make_engine(checkpoint, "torch", threads=1)
    assert difference(OnnxEngine(graph, 1), reference) <= TOLERANCE["float32"]

    def shifted(crops, box):
        return {name: array + 0.001 for name, array in reference(crops, box).items()}

    shifted.image_size, shifted.description = reference.image_size, "shifted"
    with pytest.raises(InputError, match="shifted differs from torch by 1.00 mm"):
        check_parity(shifted, reference)


@pytest.mark.parametrize("device, number", [("cuda", "0"), ("cuda:2", "2")])
def test_providers_go_by_what_is_there_and_the_device(device, number):
    everything = [CPU, "AzureExecutionProvider", *reversed(GPU_PROVIDERS)]
    for there in (everything, [CPU], [CPU, "CUDAExecutionProvider"]):
        names, options = zip(*graph_providers(there, device))
        assert list(names) == [name for name in GPU_PROVIDERS if name in there] + [CPU]  # TensorRT first, the CPU last
        assert all(option["device_id"] == number for option in options[:-1])
        assert graph_providers(there, "cpu") == [(CPU, {})]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_of_onnxruntime_that_cannot_be_used_is_replaced_by_the_cpu(checkpoint, graph, monkeypatch, rng, caplog):
    """As by an onnxruntime-gpu on a machine whose driver it cannot use."""
    with pytest.raises(InputError, match="cannot start a provider for cuda"):
        OnnxEngine(graph, 1, "cuda")
    assert choose_engine(checkpoint, "onnxruntime").device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_engine(checkpoint, "onnxruntime").device == "cpu"
    with pytest.raises(InputError, match="no provider for a GPU"):
        choose_engine(checkpoint, "onnxruntime", "cuda:1")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*GPU_PROVIDERS, CPU])
    assert choose_engine(checkpoint, "onnxruntime") == ("onnxruntime", "cuda", "asked for")
    engine = make_engine(checkpoint, "onnxruntime", threads=1)
    assert " on cpu" in engine.description and caplog.text.count("its GPU cannot be used") == 1
    inputs = random_input(rng, 1, 192)
    assert_same(engine(*inputs), OnnxEngine(graph, 1)(*inputs))


def test_openvino_agrees(model, checkpoint, graph, rng):
    pytest.importorskip("openvino")
    crops, box = random_input(rng, 2, 192)
    ours, theirs = make_engine(checkpoint, "openvino", threads=1)(crops, box), TorchEngine(model)(crops, box)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3, err_msg=name)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 9, 16, 17, 32, 45])
def test_batches_are_filled_up_as_little_as_can_be(count):
    sizes = split_batch(count)
    assert set(sizes) <= set(BUCKETS) and sum(sizes) >= count
    assert sum(sizes[:-1]) < count or not count
    assert not sizes or sizes[-1] < 2 * max(count - sum(sizes[:-1]), 1)


def test_the_command_line_offers_the_engines():
    assert OFFERED == ENGINES


def test_the_cached_graph_is_used_and_a_damaged_one_replaced(checkpoint, graph, monkeypatch, tmp_path, caplog):
    good = shutil.copy(graph, tmp_path / "good.onnx")
    exports = []

    def export(_, path, *__):  # the real export is tried above, and takes long
        exports.append(path)
        shutil.copy(good, path)

    monkeypatch.setattr(engines, "export_onnx", export)
    assert choose_engine(checkpoint) == ("onnxruntime", "cpu", "faster than torch on a CPU")
    assert "ONNX Runtime" in make_engine(checkpoint).description and not exports
    graph.write_bytes(graph.read_bytes()[:1000])
    make_engine(checkpoint)
    assert exports == [graph] and "damaged" in caplog.text
    assert [path.name for path in graph.parent.iterdir()] == [graph.name]


def test_another_checkpoint_has_another_graph(checkpoint, cache, tmp_path):
    other = tmp_path / checkpoint.name
    other.write_bytes(checkpoint.read_bytes() + b" ")
    assert graph_path(other) != graph_path(checkpoint)


def test_torch_where_a_graph_cannot_be_had(checkpoint, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path))
    find_spec = engines.importlib.util.find_spec
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    engine = make_engine(checkpoint)
    assert isinstance(engine, TorchEngine) and "no onnx" in engine.description
    assert "pip install" in caplog.text


def test_torch_where_the_cache_cannot_be_written(checkpoint, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(engines, "export_onnx", lambda model, path, *_: path.parent.mkdir(parents=True))
    engine = make_engine(checkpoint)
    assert isinstance(engine, TorchEngine) and "ONNX Runtime cannot be used" in engine.description
    assert "cannot be used" in caplog.text


def test_what_cannot_be_had_is_told(checkpoint, tmp_path):
    for options, words in (
        ({"engine": "abacus"}, "unknown engine 'abacus'"),
        ({"device": "cuda:9"}, "no CUDA GPU|runs on the CPU"),
        ({"device": "quantum"}, "unknown device"),
        ({"engine": "tensorrt"}, "pip install|NVIDIA GPU"),
    ):
        with pytest.raises(InputError, match=words):
            make_engine(checkpoint, **options)
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match="a.onnx"):
        OnnxEngine(tmp_path / "a.onnx")


def test_compiled_batches_are_those_of_torch(model, monkeypatch, rng):
    """Traced and run in fixed batches; the code generator itself, minutes on a CPU, is left out."""
    compile_module = engines.ExportModel.compile
    monkeypatch.setattr(engines.ExportModel, "compile", lambda self, **_: compile_module(self, backend="eager"))
    crops, box = random_input(rng, 3, 192)
    compiled = CompiledEngine(model)
    ours, theirs = compiled(crops, box), TorchEngine(model)(crops, box)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
    assert_same(compiled(torch.from_numpy(crops), box), ours)
