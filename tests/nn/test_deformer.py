import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer

Build = Callable[..., DeFormer]
Crops = tuple[Tensor, Tensor]
LEVELS = {"coarse": 615, "middle": 1229, "full": 12272}


def flat(out: dict) -> dict[str, Tensor]:
    layers = {f"{i}.{name}": value for i, layer in enumerate(out["layers"]) for name, value in layer.items()}
    return {name: value for name, value in out.items() if name != "layers"} | layers


def test_keys_shapes_and_frame(build: Build, crops: Crops, body: BodyTopology) -> None:
    out = build()(*crops)
    shapes = {f"vertices_{name}": (2, size, 3) for name, size in LEVELS.items()}
    shapes |= {"joints": (2, 23, 3), "camera": (2, 3), "keypoints": (2, 17, 3)}
    assert {name: tuple(out[name].shape) for name in out if name != "layers"} == shapes
    for layer in out["layers"]:
        assert {"joints", "vertices_coarse", "camera"} <= set(layer)
    assert {"rotations", "shape"} <= set(out["layers"][0])
    assert all(value.isfinite().all() for value in flat(out).values())
    regressed = body.levels["full"].joint_regressor.apply(out["vertices_full"])
    torch.testing.assert_close(regressed, out["joints"], atol=1e-5, rtol=0)
    assert out["joints"][:, list(body.hips)].mean(1).abs().max() < 1e-5


def test_forward_is_decode_of_the_backbone(build: Build, crops: Crops) -> None:
    model = build()
    images, box = crops
    kept = BackboneOutput(*model.backbone(images))
    for name, value in flat(model(images, box)).items():
        torch.testing.assert_close(flat(model.decode(kept, box))[name], value)


def test_a_batch_equals_its_parts(build: Build, crops: Crops) -> None:
    model = build()
    images, box = crops
    together = flat(model(images, box))
    for i in range(2):
        alone = flat(model(images[i : i + 1], box[i : i + 1]))
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][i], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"attention": "tiles"}, {"feedback": False}, {"query_level": "middle"}]
)
def test_every_parameter_gets_a_gradient(build: Build, crops: Crops, changes: dict) -> None:
    model = build(**changes)
    out = flat(model(*crops))
    sum((value * torch.randn_like(value)).sum() for value in out.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_people_without_an_image(build: Build, crops: Crops) -> None:
    model = build()
    images, box = crops
    keypoints = model.backbone(images).keypoints
    blank = BackboneOutput((), keypoints[:, 0], keypoints)  # type: ignore[arg-type]
    out = model.decode(blank, box)
    assert out["vertices_full"].shape == (2, LEVELS["full"], 3)
    flat(out)["vertices_full"].sum().backward()
    assert all(p.grad is None for p in model.decoder.neck.parameters())


def test_dense_configuration(build: Build, crops: Crops) -> None:
    """All 12272 vertices as queries; coarser levels are not made up."""
    model = build(query_level="full", layers=1, dim=8, heads=1, ffn=8)
    with torch.no_grad():
        out = model(*crops)
    assert out["vertices_full"].shape == (2, LEVELS["full"], 3)
    assert "vertices_coarse" not in out and "vertices_full" in out["layers"][0]


def test_fresh_recovery_is_upsampling_alone(build: Build, crops: Crops, body: BodyTopology) -> None:
    out = build(awake=False)(*crops)
    middle = body.upsample["middle"].apply(out["layers"][-1]["vertices_coarse"])
    full = body.upsample["full"].apply(middle)
    shift = out["vertices_full"] - full
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-5, rtol=0)


def test_a_correction_that_shifts_everything_shifts_nothing(build: Build, crops: Crops, body: BodyTopology) -> None:
    """No loss sees a common shift of the finer levels, so it must not part them from the coarse one."""
    model = build()
    before = model(*crops)
    with torch.no_grad():
        model.recovery.correct.bias += 0.3
    after = model(*crops)
    for name in (*(f"vertices_{level}" for level in LEVELS), "joints"):
        torch.testing.assert_close(after[name], before[name], atol=1e-4, rtol=0)
    coarse = body.levels["coarse"].joint_regressor.apply(after["vertices_coarse"])
    assert coarse[:, list(body.hips)].mean(1).abs().max() < 1e-4


def test_geometry_keeps_its_precision_under_autocast(build: Build, crops: Crops, body: BodyTopology) -> None:
    model = build(awake=False)
    images, box = crops
    features = model.backbone(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.decode(features, box)
    first = rough["layers"][0]
    exact = model.regressor.body(first["rotations"], first["shape"])
    torch.testing.assert_close(first["vertices_coarse"], exact["coarse"], atol=1e-6, rtol=0)
    assert first["rotations"].dtype == rough["vertices_full"].dtype == torch.float32
    fine = model.decode(features, box)
    assert (rough["vertices_full"] - fine["vertices_full"]).abs().max() < 0.01


def test_no_constants_in_the_state(build: Build) -> None:
    model = build()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_unknown_names(body: BodyTopology) -> None:
    with pytest.raises(InputError, match="backbone"):
        DeFormer.from_config(DeFormerConfig(backbone="resnet9000"))
    with pytest.raises(InputError, match="body"):
        DeFormer.from_config(DeFormerConfig(body="nobody"), pretrained_backbone=False)


class Refinement(nn.Module):
    """The model without its backbone and initial regressor: what is ours in its graph."""

    def __init__(self, model: DeFormer) -> None:
        super().__init__()
        self.decoder, self.recovery = model.decoder, model.recovery

    def forward(self, maps: tuple[Tensor, ...], *rest: Tensor) -> tuple[Tensor, ...]:
        pooled, joints, vertices, camera, keypoints, box = rest
        initial = {"joints": joints, "vertices_coarse": vertices, "camera": camera}
        layers, queries = self.decoder(initial, self.decoder.neck(maps, pooled), keypoints, box)
        levels = self.recovery(layers[-1]["vertices_coarse"], queries, joints.shape[1])
        return levels["full"], layers[-1]["joints"], layers[-1]["camera"]


def test_exported_graph_agrees(build: Build, crops: Crops, tmp_path: Path) -> None:
    """In ONNX Runtime, at another batch size than it was traced with; the engines' tests export all of it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    import onnxruntime

    model = build(sampling="gather", layers=1, maps=(8, 32))
    images, box = crops
    with torch.no_grad():
        seen = model.backbone(images)
        initial = model.regressor(seen.keypoints, box, seen.pooled)
    parts = (
        seen.pooled,
        initial["joints"],
        initial["vertices_coarse"],
        initial["camera"],
        seen.keypoints,
        box,
    )
    batch = {0: torch.export.Dim("batch", min=1)}
    shapes = ((batch,) * 4, (batch,) * len(parts))
    module = Refinement(model).eval()
    traced = torch.export.export(module, (seen.maps, *parts), dynamic_shapes=shapes)
    program = torch.onnx.export(traced, dynamo=True, opset_version=18, verbose=False)
    assert program is not None
    path = tmp_path / "model.onnx"
    program.save(path)
    graph = onnx.load(path)
    assert not {"GridSample", "If", "Loop", "Scan"} & {node.op_type for node in graph.graph.node}
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 18)]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = [value[[0, 1, 0]] for value in (*seen.maps, *parts)]
    with torch.no_grad():
        expected = module(tuple(more[:4]), *more[4:])
    given = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), more)}
    for ours, theirs in zip(session.run(None, given), expected):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)


def test_the_model_is_built_without_scipy(build: Build) -> None:
    """Start-up reads the cached pattern; scipy is for making it."""
    build()  # makes the cached file
    code = (
        "import sys; from deformer_core.nn.deformer import DeFormer; from deformer_core.nn.config import *;"
        "DeFormer.from_config(DeFormerConfig(dim=16)); print('scipy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
