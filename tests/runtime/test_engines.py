"""All engines give the same numbers, and one always can be had."""

import shutil

import numpy as np
import onnx
import pytest

from deformer_core.errors import InputError
from deformer_core.runtime import engines
from deformer_core.runtime.engines import OnnxEngine, TorchEngine, choose_engine, graph_path, make_engine
from deformer_core.runtime.export import check_graph


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


def test_the_graph_is_portable(graph):
    check_graph(onnx.load(graph))
    kinds = {node.op_type for node in onnx.load(graph).graph.node}
    assert not kinds & {"GridSample", "If", "Loop"}


def test_the_cached_graph_is_used_and_a_damaged_one_replaced(checkpoint, graph, monkeypatch, tmp_path, caplog):
    good = shutil.copy(graph, tmp_path / "good.onnx")
    exports = []

    def export(_, path):  # the real export is tried above, and takes long
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
    monkeypatch.setattr(engines, "export_onnx", lambda model, path: path.parent.mkdir(parents=True))
    engine = make_engine(checkpoint)
    assert isinstance(engine, TorchEngine) and "ONNX Runtime cannot be used" in engine.description
    assert "cannot be used" in caplog.text


def test_what_cannot_be_had_is_told(checkpoint, tmp_path):
    for options, words in (
        ({"engine": "abacus"}, "unknown engine 'abacus'"),
        ({"device": "cuda:9"}, "no CUDA GPU|runs on the CPU"),
        ({"device": "quantum"}, "unknown device"),
    ):
        with pytest.raises(InputError, match=words):
            make_engine(checkpoint, **options)
    (tmp_path / "a.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match="a.onnx"):
        OnnxEngine(tmp_path / "a.onnx")
