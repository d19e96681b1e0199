"""MoveNet as a backbone: shapes, independence of the batch, gradients, export, parity with the original."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from deformer_core.errors import InputError
from deformer_core.nn.backbones import MOVENETS, Backbone, build_backbone
from training.tools.convert_movenet import convert, original_keypoints
from training.tools.figure import CANVAS, JOINTS, draw_person
from training.tools.tfjs import read_graph

ROOT = Path(__file__).parents[2]
PHOTOS = Path(os.environ.get("DEFORMER_SHARED", ROOT.parent / "shared")) / "data" / "photos_ccby"
PACKAGE = os.environ.get("DEFORMER_HUMAN_MODELS")
SEED = 20


@pytest.fixture(scope="module", params=MOVENETS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def backbone(name: str) -> Backbone:
    return build_backbone(name).requires_grad_(False)


def as_batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def as_original(keypoints: torch.Tensor) -> np.ndarray:
    """Ours, x y in -1..1 and score, to the original's y x in 0..1 and score."""
    x, y, score = keypoints.unbind(-1)
    return torch.stack(((y + 1) / 2, (x + 1) / 2, score), -1).numpy()


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_shapes_follow_the_contract(backbone: Backbone, size: tuple[int, int]) -> None:
    out = backbone(torch.full((2, 3, *size), 100.0))
    for stride, channels, features in zip((4, 8, 16, 32), backbone.channels, out.maps, strict=True):
        assert features.shape == (2, channels, size[0] // stride, size[1] // stride)
    assert out.pooled.shape == (2, backbone.pooled_channels)
    assert out.keypoints.shape == (2, 17, 3)


def test_a_batch_equals_its_images_one_by_one(backbone: Backbone) -> None:
    size = backbone.image_size
    noise = np.random.default_rng(SEED).integers(0, 256, (size, size, 3), np.uint8)
    images = as_batch(np.stack((draw_person(size), draw_person(size)[:, ::-1], noise)))
    together = backbone(images)
    for index in range(len(images)):
        alone = backbone(images[index : index + 1])
        for a, b in zip((*together.maps, together.pooled), (*alone.maps, alone.pooled), strict=True):
            torch.testing.assert_close(a[index], b[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.keypoints[index], alone.keypoints[0], rtol=0, atol=1e-4)


def test_gradient_reaches_every_feature_parameter(name: str) -> None:
    torch.manual_seed(SEED)
    model = build_backbone(name, pretrained=False)
    out = model(torch.rand(1, 3, 64, 64) * 255)
    sum(features.square().sum() for features in out.maps).backward()
    features = [(key, value) for key, value in model.named_parameters() if not key.startswith("heads.")]
    assert features
    assert [key for key, value in features if value.grad is None or not value.grad.any()] == []


def test_keypoints_lie_on_a_drawn_person(backbone: Backbone) -> None:
    """From head to hips: not every model is sure of the drawing's flat legs."""
    keypoints = backbone(as_batch(draw_person(backbone.image_size)[None])).keypoints[0]
    drawn = torch.tensor(list(JOINTS.values())) / CANVAS * 2 - 1
    assert (keypoints[:13, :2] - drawn[:13]).norm(dim=1).max() < 0.06
    assert keypoints[:13, 2].min() > 0.3


def test_keypoints_equal_the_recorded_original(name: str, backbone: Backbone) -> None:
    """Made by `python -m training.tools.convert_movenet PACKAGE --model MODEL --out FILE --golden FILE`."""
    recorded = np.load(Path(__file__).with_name(f"{name}.npz"))
    ours = as_original(backbone(as_batch(recorded["images"])).keypoints)
    np.testing.assert_allclose(ours, recorded["keypoints"], atol=1e-3)


@pytest.mark.skipif(not PACKAGE, reason="DEFORMER_HUMAN_MODELS names no npm package")
def test_parity_with_the_original_graph(name: str, backbone: Backbone) -> None:
    graph = read_graph(Path(PACKAGE or ""), name.replace("_", "-"))
    state = backbone.state_dict()
    assert all(torch.equal(value, state[key].half()) for key, value in convert(graph.constants).items())
    size = backbone.image_size
    pictures = [draw_person(size)[:, ::-1].copy()]
    for path in sorted(PHOTOS.glob("*.jpg"))[:5]:
        photo = np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB))
        pictures.append(cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA))
    ours = as_original(backbone(as_batch(np.stack(pictures))).keypoints)
    for picture, keypoints in zip(pictures, ours, strict=True):
        np.testing.assert_allclose(keypoints, original_keypoints(graph, picture), atol=1e-3)


def test_onnx_export_equals_torch(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = build_backbone("movenet_lightning")

    class Flat(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            out = backbone(images)
            return (*out.maps, out.pooled, out.keypoints)

    flat, path = Flat().eval(), tmp_path / "backbone.onnx"
    flat.backbone = backbone
    pictures = as_batch(np.stack((draw_person(192), draw_person(192)[:, ::-1], draw_person(192) // 2)))
    shapes = {"images": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        flat, (pictures[:2],), path, dynamo=True, opset_version=18, dynamic_shapes=shapes, verbose=False
    )
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} == {""}
    assert not {node.op_type for node in nodes} & {"GridSample", "If", "Loop"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = flat(pictures)
    for ours, theirs in zip(expected, session.run(None, {"images": pictures.numpy()}), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4 * float(ours.abs().max()))


def test_bad_input_is_refused(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="multiples of 32"):
        backbone(torch.zeros(1, 3, 100, 128))
    with pytest.raises(InputError, match="movenet_thunder"):
        build_backbone("resnet9000")
