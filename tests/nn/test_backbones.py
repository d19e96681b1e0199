"""The pose networks: the published architectures, the interface, heatmaps, the view of part of the crop."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from small_backbones import SMALL
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.nn.backbones import Backbone, BackboneOutput, build_backbone
from deformer_core.nn.backbones.aggpose import Block, PatchEmbedding, Upsample
from deformer_core.nn.backbones.heatmaps import Maps, PoseBackbone, decode_heatmaps
from deformer_core.nn.backbones.hrformer import HRFormerBlock
from deformer_core.nn.backbones.keypoint_loss import bumps
from deformer_core.nn.backbones.pretrained import build_pose_backbone
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer, configured_backbone

PUBLISHED = {
    "resnet50": (34.0, "SimpleBaseline-ResNet50, HRNet paper, table 1"),
    "hrnet_w32": (28.5, "HRNet paper, table 1"),
    "hrnet_w48": (63.6, "HRNet paper, table 1"),
    "hrformer_small": (7.8, "HRFormer paper, table of COCO pose"),
    "hrformer_base": (43.2, "HRFormer paper, table of COCO pose"),
    "aggpose_large": (96.75, "of the authors' module; we found no count in print"),
}
"""Million parameters with the heatmap head for 17 keypoints."""

LAYOUTS = {
    "resnet50": (338, "7338d3eb809f6e7d"),
    "hrnet_w32": (1754, "eeae6b213fb592ef"),
    "hrnet_w48": (1754, "ad74263e5d056124"),
    "aggpose_large": (1568, "3057f19f4b2c410e"),
}
"""Tensors, and the digest of all their names and shapes, of the modules in the original repositories."""


@pytest.fixture(params=SMALL)
def backbone(request: pytest.FixtureRequest, seed: int) -> Backbone:
    return SMALL[request.param]().eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size_and_names(name: str) -> None:
    with torch.device("meta"):
        model = build_pose_backbone(name, 256, None)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[name][0], rel=0.02), PUBLISHED[name][1]
    if name in LAYOUTS:
        layout = sorted(f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())
        digest = hashlib.sha256("\n".join(layout).encode()).hexdigest()[:16]
        assert (len(layout), digest) == LAYOUTS[name]


def test_resnet50_without_its_head_is_the_classifiers() -> None:
    """He et al., and torchvision: 25.6 M with 1000 classes."""
    with torch.device("meta"):
        model = build_pose_backbone("resnet50", 256, None)
    body = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(model.HEAD))
    assert (body + 2048 * 1000 + 1000) / 1e6 == pytest.approx(25.557, abs=0.001)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_shapes_follow_the_contract(backbone: Backbone, size: tuple[int, int]) -> None:
    out = backbone(torch.full((2, 3, *size), 100.0))
    for stride, channels, features in zip((4, 8, 16, 32), backbone.channels, out.maps, strict=True):
        assert features.shape == (2, channels, size[0] // stride, size[1] // stride)
    assert out.pooled.shape == (2, backbone.pooled_channels)
    assert out.keypoints.shape == (2, 17, 3)
    assert 0 <= out.keypoints[..., 2].min() and out.keypoints[..., 2].max() <= 1
    with pytest.raises(InputError, match="multiples of 32"):
        backbone(torch.zeros(1, 3, 64, 80))


def test_a_batch_equals_its_images_one_by_one(backbone: Backbone) -> None:
    images = torch.rand(2, 3, 96, 64) * 255
    together = backbone(images)
    for index in range(2):
        alone = backbone(images[index : index + 1])
        for a, b in zip((*together.maps, together.pooled), (*alone.maps, alone.pooled), strict=True):
            torch.testing.assert_close(a[index], b[0], rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient(backbone: Backbone) -> None:
    out = backbone(torch.rand(2, 3, 128, 128) * 255)
    loss = backbone.keypoint_loss(out, torch.rand(2, 17, 2) - 0.5, torch.ones(2, 17)).sum()
    (loss + sum((features * torch.randn_like(features)).sum() for features in out.maps)).backward()
    grads = {name: p.grad for name, p in backbone.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.any()] == []
    assert all(grad.isfinite().all() for grad in grads.values() if grad is not None)


@pytest.mark.parametrize("name", SMALL)
def test_twenty_steps_lower_the_loss(name: str, body: BodyTopology, seed: int) -> None:
    config = DeFormerConfig(
        dim=16, heads=2, ffn=16, layers=1, points=1, regressor_hidden=32, regressor_blocks=1, dropout=0.0
    )
    model = DeFormer(config, body, SMALL[name]()).train()
    images, box = torch.rand(2, 3, 64, 64) * 255, torch.tensor([[0.1, -0.2, 0.2], [0.0, 0.1, 0.4]])
    target, uv, weight = torch.randn(2, 23, 3) * 0.3, torch.rand(2, 17, 2) - 0.5, torch.ones(2, 17)
    before = {key: p.detach().clone() for key, p in model.backbone.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        features = model.backbone(images)
        layers = model.decode(features, box)["layers"]
        found = model.backbone.keypoint_loss(features, uv, weight).mean()
        loss = found + sum((layer["joints"] - target).abs().mean() for layer in layers)  # type: ignore[index]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.9 * losses[0]
    assert all(not torch.equal(p, before[key]) for key, p in model.backbone.named_parameters())


def test_a_frozen_backbone_keeps_its_statistics(body: BodyTopology) -> None:
    model = DeFormer(DeFormerConfig(dim=16, heads=2, layers=1), body, SMALL["hrnet"]())
    model.backbone.requires_grad_(False)
    model.train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    model.backbone(torch.rand(2, 3, 64, 64) * 255)
    assert model.training and not model.backbone.training
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())


def test_gaussians_are_found_between_cells(rng: np.random.Generator) -> None:
    """A keypoint at pixel x of a crop of 4 w pixels, as in HRNet's targets: cell x / 4."""
    height, width = 24, 18
    middle = torch.from_numpy(rng.uniform((1, 1), (width - 2, height - 2), (2, 17, 2)))
    peaks = torch.from_numpy(rng.uniform(0.3, 1, (2, 17)))
    found = decode_heatmaps(bumps(middle, peaks, height, width, sigma=2.0))
    pixels = (found[..., :2] + 1) / 2 * torch.tensor([width, height]) * 4 - 0.5
    torch.testing.assert_close(pixels.double(), middle * 4, atol=1e-3, rtol=0)
    assert (found[..., 2] <= peaks + 1e-6).all() and (found[..., 2] > 0.9 * peaks).all()


def test_heatmaps_without_a_peak_are_worth_nothing() -> None:
    for value in (0.0, -1.0):
        found = decode_heatmaps(torch.full((1, 17, 8, 8), value))
        assert found.isfinite().all() and not found[..., 2].any() and found[..., :2].abs().max() <= 1


@pytest.mark.parametrize("width", [128, 96])
def test_keypoint_loss_and_keypoints_agree(width: int, seed: int) -> None:
    """Heatmaps that the loss calls perfect decode to the labels, seen whole or in part."""
    uv, ones = torch.rand(1, 17, 2) - 0.5, torch.ones(1, 17)
    pixels = (uv + 1) / 2 * 128 - 0.5 - torch.tensor([(128 - width) / 2, 0])
    heatmaps = bumps(pixels / 4, ones, 32, width // 4, sigma=2.0)

    class Perfect(PoseBackbone):
        def extract(self, images: Tensor) -> tuple[Maps, Tensor]:
            blank = images[:, :1]
            return (blank, blank, blank, blank), heatmaps

    perfect = Perfect((1, 1, 1, 1), image_size=128, image_width=width)
    out = perfect(torch.zeros(1, 3, 128, 128))
    assert perfect.keypoint_loss(out, uv, ones).max() < 1e-6
    torch.testing.assert_close(out.keypoints[..., :2], uv, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SMALL)
def test_part_of_the_crop_is_its_central_columns(name: str, seed: int) -> None:
    part = SMALL[name](image_size=128, image_width=64).eval()
    whole = SMALL[name]().eval()
    whole.load_state_dict(part.state_dict())
    images = torch.rand(1, 3, 128, 128) * 255
    seen, expected = part(images), whole(images[..., 32:96])
    for a, b in zip((*seen.maps, seen.pooled, *seen.heads), (*expected.maps, expected.pooled, *expected.heads)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(seen.keypoints, expected.keypoints * torch.tensor([0.5, 1, 1]))


class Ramp(Backbone):
    """Every channel of every map is x in the crop, on its `width` central columns out of 128."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image_size, self.channels, self.pooled_channels, self.width = 128, (2, 2, 2, 2), 2, width
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> BackboneOutput:
        maps = []
        for stride in (4, 8, 16, 32):
            columns = torch.arange(self.width // stride) + 0.5 + (128 - self.width) / 2 / stride
            x = columns * stride / 64 - 1
            maps.append(self.scale * x.expand(len(images), 2, 128 // stride, -1))
        keypoints = torch.cat([images[:, :2, :17, 0].transpose(1, 2), torch.ones(len(images), 17, 1)], -1)
        return BackboneOutput((maps[0], maps[1], maps[2], maps[3]), maps[3].mean((2, 3)), keypoints)


@pytest.mark.parametrize("sampling", ["grid", "gather"])
@pytest.mark.parametrize("width", [128, 96])
def test_maps_of_part_of_the_crop_are_sampled_at_the_same_places(
    width: int, sampling: str, body: BodyTopology, seed: int
) -> None:
    config = DeFormerConfig(
        dim=16, heads=2, ffn=16, layers=1, points=1, image_size=128, image_width=width, sampling=sampling
    )
    model = DeFormer(config, body, Ramp(width)).eval()
    assert model.config.zoom == 128 / width
    seen: dict[str, Tensor] = {}
    model.regressor.register_forward_pre_hook(lambda _, args: seen.update(evidence=args[3]))
    layer = model.decoder.layers[0]
    assert isinstance(layer.attend_image, nn.Module) and isinstance(layer.embed, nn.Module)
    layer.attend_image.register_forward_pre_hook(lambda _, args: seen.update(places=args[1]))
    layer.embed.register_forward_pre_hook(lambda _, args: seen.update(references=args[0][..., 3:5]))
    images = torch.rand(2, 3, 128, 128) - 0.5  # keypoints between -0.5 and 0.5: within the narrowest map's centres
    model(images, torch.tensor([[0.1, -0.2, 0.2], [0.0, 0.1, 0.4]]))
    x = images[:, 0, :17, 0]
    torch.testing.assert_close(seen["evidence"], x[..., None].expand(-1, -1, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen["places"], seen["references"] * torch.tensor([128 / width, 1.0]))


def test_configured_backbones(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="no weights of hrformer_small are shipped"):
        build_backbone("hrformer_small")
    configured_backbone(DeFormerConfig(backbone="hrformer_small"))
    assert "starts from random weights" in caplog.text
    config = DeFormerConfig(backbone="hrformer_small", image_size=128, image_width=96)
    backbone = configured_backbone(config, pretrained=False)
    assert backbone.image_size == 128 and not backbone.training
    assert backbone(torch.zeros(1, 3, 128, 128)).maps[0].shape == (1, 32, 32, 24)
    assert build_backbone("movenet_lightning", image_size=256).image_size == 256
    for changes, message in (
        ({"backbone": "resnet50", "backbone_weights": "nowhere.pth"}, "no backbone weights nowhere.pth"),
        ({"backbone_weights": "nowhere.pth"}, "has weights of its own"),
        ({"image_size": 256, "image_width": 192}, "sees whole crops"),
    ):
        with pytest.raises(InputError, match=message):
            configured_backbone(DeFormerConfig(**changes))  # type: ignore[arg-type]
    for changes, message in (
        ({"image_size": 100}, "multiples of 32"),
        ({"image_width": 192}, "needs an image_size"),
        ({"image_size": 128, "image_width": 192}, "needs an image_size"),
    ):
        with pytest.raises(InputError, match=message):
            DeFormerConfig(**changes)  # type: ignore[arg-type]
    # Where a model started from does not make it another one.
    assert DeFormerConfig(backbone_weights="a.pth") == DeFormerConfig()


class Flat(nn.Module):
    """A backbone's output as a plain tuple, for graphs."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        out = self.backbone(images)
        return (*out.maps, out.pooled, out.keypoints)


def one_of_each_part() -> nn.Module:
    """What the others have and ResNet has not. Whole, they take up to twenty seconds to export."""
    resized = [nn.AvgPool2d(4), nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Upsample(scale_factor=2.0)]
    hrformer = [HRFormerBlock(3, 1, 0.1), HRFormerBlock(3, 3, 0.1)]
    aggpose = [PatchEmbedding(3, 8, kernel=7, stride=4), Block(8, 2, 2, 0.1), Block(8, 2, 1, 0.1), Upsample(8, 4, 2)]
    return nn.Sequential(*resized, *hrformer, ChannelsLast(), *aggpose)


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["resnet", "parts"])
def test_onnx_export_equals_torch(name: str, tmp_path: Path, seed: int) -> None:
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from deformer_core.runtime.export import OPSET, check_graph

    model = one_of_each_part() if name == "parts" else Flat(SMALL[name](image_size=128, image_width=96))
    model, path, images = model.eval(), tmp_path / "backbone.onnx", torch.rand(3, 3, 128, 128) * 255
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        traced = torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
        program = torch.onnx.export(traced, dynamo=True, opset_version=OPSET, input_names=["images"], verbose=False)
        expected = model(images)
    assert program is not None
    program.save(path)
    check_graph(onnx.load(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results = session.run(None, {"images": images.numpy()})
    for ours, theirs in zip([expected] if name == "parts" else expected, results, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-3 * max(1, float(ours.abs().max())))
