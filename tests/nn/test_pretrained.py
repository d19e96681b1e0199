"""Published weights: every layout is read, and nothing is left unsaid."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_backbones import SMALL
from torch import Tensor

from deformer_core.errors import InputError
from deformer_core.nn.backbones.heatmaps import PoseBackbone
from deformer_core.nn.backbones.pretrained import load_pretrained

State = dict[str, Tensor]


@pytest.fixture(params=SMALL)
def name(request: pytest.FixtureRequest, seed: int) -> str:
    return request.param


def with_prefixes(model: PoseBackbone, head: str) -> State:
    return {
        (head if key.startswith(model.HEAD) else "backbone.") + key: value for key, value in model.state_dict().items()
    }


def original_hrformer(state: State) -> State:
    """Query, key and value apart, other names, and the index of relative positions."""
    renamed = {}
    for key, value in state.items():
        key = key.replace(".ffn.", ".mlp.").replace(".proj.", ".out_proj.")
        if ".qkv." in key:
            for part, third in zip("qkv", value.chunk(3)):
                renamed[key.replace("qkv", f"{part}_proj")] = third
        else:
            renamed[key] = value
        if key.endswith("bias_table"):
            renamed[key.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
    return renamed


def save(layout: str, model: PoseBackbone, folder: Path) -> Path:
    state = model.state_dict()
    path = folder / "weights.pth"
    if layout == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    content = {
        "flat": state,
        "half": {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        "parallel": {"epoch": 210, "model": {f"module.{key}": value for key, value in state.items()}},
        "mmpose 0": {"meta": {"mmpose_version": "0.18.0"}, "state_dict": with_prefixes(model, "keypoint_head.")},
        "mmpose 1": {
            "meta": {"dataset_meta": {"sigmas": np.ones(17, np.float32), "names": np.array(["nose"])}},
            "state_dict": with_prefixes(model, "head."),
        },
        "without counters": {key: value for key, value in state.items() if "num_batches_tracked" not in key},
        "with classifier": state | {"fc.weight": torch.zeros(1000, 8), "classifier.bias": torch.zeros(1000)},
    }[layout]
    torch.save(content, path)
    return path


LAYOUTS = ["flat", "half", "safetensors", "parallel", "mmpose 0", "mmpose 1", "without counters", "with classifier"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_whole(name: str, layout: str, tmp_path: Path) -> None:
    source, target = SMALL[name](), SMALL[name]()
    report = load_pretrained(target, save(layout, source, tmp_path))
    expected = source.state_dict()
    assert report.missing == report.unexpected == report.reshaped == ()
    assert report.unused == (("classifier.bias", "fc.weight") if layout == "with classifier" else ())
    counters = sum("num_batches_tracked" in key for key in expected)
    assert len(report.matched) == len(expected) - (counters if layout == "without counters" else 0)
    tolerance = 1e-3 if layout == "half" else 0
    for key, value in target.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=tolerance, atol=tolerance)


def test_the_original_hrformer_is_translated(seed: int, tmp_path: Path) -> None:
    source, target = SMALL["hrformer"]().eval(), SMALL["hrformer"]().eval()
    torch.save({"state_dict": original_hrformer(source.state_dict())}, tmp_path / "hrt.pth")
    report = load_pretrained(target, tmp_path / "hrt.pth")
    assert report.unused and all(key.endswith("relative_position_index") for key in report.unused)
    images = torch.rand(1, 3, 64, 64) * 255
    torch.testing.assert_close(target(images).maps, source(images).maps)


def test_imagenet_weights_leave_the_head_random_and_say_so(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = SMALL[name](), SMALL[name]()
    extra = {"fc.weight": torch.zeros(10, 4)}
    if name.startswith("hr"):
        extra |= {"final_layer.0.weight": torch.zeros(4), "stage4.0.fuse_layers.1.0.0.0.weight": torch.zeros(4)}
    state = {key: value for key, value in source.state_dict().items() if not key.startswith(source.HEAD)}
    torch.save(state | extra, tmp_path / "imagenet.pth")
    with caplog.at_level(logging.WARNING):
        report = load_pretrained(target, tmp_path / "imagenet.pth")
    assert "no keypoint head" in caplog.text
    assert all(key.startswith(target.HEAD) for key in report.missing) and report.missing
    assert report.unused == tuple(sorted(extra))


def test_what_does_not_fit_is_listed_and_nothing_loaded(name: str, tmp_path: Path) -> None:
    source, target = SMALL[name](), SMALL[name]()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    keys = [key for key, value in before.items() if value.ndim > 1 and not key.startswith(target.HEAD)]
    lost, odd = keys[0], keys[-1]
    cases = (
        ({key: value for key, value in source.state_dict().items() if key != lost}, f"1 missing \\({lost}\\)"),
        (source.state_dict() | {"stage9.weight": torch.zeros(1)}, r"1 unexpected \(stage9.weight\)"),
        (source.state_dict() | {odd: torch.zeros(2, 3)}, rf"1 of another shape \({odd} \(2, 3\) for"),
        ({"weight": torch.zeros(1)}, r"0 matched; \d+ missing \(.*, \.\.\.\); 1 unexpected"),
    )
    for state, message in cases:
        torch.save(state, tmp_path / "bad.pth")
        with pytest.raises(InputError, match=message):
            load_pretrained(target, tmp_path / "bad.pth")
        assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


class Anything:
    """Of no class that a file of weights may name."""


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    model = SMALL["resnet"]()
    path = tmp_path / "w.pth"
    with pytest.raises(InputError, match="there are no backbone weights"):
        load_pretrained(model, path)
    for content, message in (
        ({"state_dict": {}, "meta": 1}, "holds no tensors"),
        ([1, 2], "holds no tensors"),
        ({"state_dict": {"a": torch.zeros(1)}, "hooks": Anything()}, "could run code"),
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=message):
            load_pretrained(model, path)
    for damaged in (tmp_path / "w.safetensors", path):
        damaged.write_bytes(b"not weights at all")
        with pytest.raises(InputError, match="damaged|could run code"):
            load_pretrained(model, damaged)
