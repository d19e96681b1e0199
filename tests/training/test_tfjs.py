"""Reading and running TensorFlow.js graphs, on a one-convolution package written here."""

import base64
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.errors import InputError
from deformer_core.nn.backbones.movenet import SameConv2d
from training.tools.tfjs import read_graph, run_graph

SEED = 22


def text(value: str) -> dict[str, str]:
    return {"s": base64.b64encode(value.encode()).decode()}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A stride-2 convolution 3 -> 5 with bias and ReLU6, its weights in 16 bits as in the real package."""
    random = np.random.default_rng(SEED)
    kernel, bias = (random.normal(size=shape).astype(np.float16) for shape in ((3, 3, 3, 5), (5,)))
    half = {"dtype": "float16", "original_dtype": "float32"}
    weights = [
        {"name": name, "shape": list(array.shape), "dtype": "float32", "quantization": half}
        for name, array in (("kernel", kernel), ("bias", bias))
    ]
    attributes = {
        "strides": {"list": {"i": ["1", "2", "2", "1"]}},
        "padding": text("SAME"),
        "fused_ops": {"list": {"s": [text("BiasAdd")["s"], text("Relu6")["s"]]}},
    }
    nodes = [
        {"name": "image", "op": "Placeholder"},
        {"name": "out", "op": "_FusedConv2D", "input": ["image", "kernel", "bias"], "attr": attributes},
        {"name": "odd", "op": "Einsum", "input": ["image"]},
    ]
    description = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["tiny.bin"], "weights": weights}],
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.json").write_text(json.dumps(description))
    (tmp_path / "models" / "tiny.bin").write_bytes(kernel.tobytes() + bias.tobytes())
    return tmp_path


def test_a_folder_and_its_archive_read_alike(package: Path, tmp_path: Path) -> None:
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(package / "models", "package/models")
    folder, packed = read_graph(package, "tiny"), read_graph(archive, "tiny")
    assert folder.nodes == packed.nodes
    assert all(np.array_equal(value, packed.constants[key]) for key, value in folder.constants.items())
    assert folder.constants["kernel"].dtype == np.float32


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_the_reference_convolution_equals_the_backbones(package: Path, size: tuple[int, int]) -> None:
    graph = read_graph(package, "tiny")
    ours = SameConv2d(3, 5, 3, stride=2).requires_grad_(False)
    weight = torch.from_numpy(graph.constants["kernel"]).permute(3, 2, 0, 1)
    ours.load_state_dict({"weight": weight, "bias": torch.from_numpy(graph.constants["bias"])})
    torch.manual_seed(SEED)
    image = torch.randn(2, *size, 3)
    (reference,) = run_graph(graph, {"image": image}, ["out"])
    torch.testing.assert_close(reference, ours(image.permute(0, 3, 1, 2)).clamp(0, 6).permute(0, 2, 3, 1))


def test_what_is_missing_is_named(package: Path) -> None:
    with pytest.raises(InputError, match="npm pack"):
        read_graph(package / "nowhere.tgz", "tiny")
    with pytest.raises(InputError, match="no model other"):
        read_graph(package, "other")
    with pytest.raises(InputError, match="Einsum"):
        run_graph(read_graph(package, "tiny"), {"image": torch.zeros(1, 8, 8, 3)}, ["odd"])
