"""The backbones' losses are least where what they read from their heads is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deformer_core.nn.backbones import build_backbone
from deformer_core.nn.backbones.heatmaps import HALF_PIXEL, decode_heatmaps
from deformer_core.nn.backbones.keypoint_loss import heatmap_loss
from deformer_core.nn.backbones.movenet import center_loss, decode_keypoints

CELLS = 24


def learn(maps: list[Tensor], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    optimizer = torch.optim.Adam([one.requires_grad_() for one in maps], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().sum().backward()
        optimizer.step()


@pytest.fixture
def uv(seed: int) -> Tensor:
    """Two people."""
    return torch.rand(2, 17, 2) * 1.7 - 0.85


def test_movenet_heads_that_learn_are_read_right(uv: Tensor) -> None:
    heads = [0.1 * torch.randn(2, channels, CELLS, CELLS) - 2 for channels in (1, 17, 34, 34)]
    weight = torch.ones(2, 17)
    learn(heads, lambda: center_loss(*heads, uv, weight), 400, 0.2)
    found = decode_keypoints(*(head.detach() for head in heads))
    torch.testing.assert_close(found[..., :2], uv, atol=0.02, rtol=0)
    assert float(found[..., 2].min()) > 0.8
    assert float(center_loss(*heads, uv, weight).max().detach()) < 0.5


def test_heatmaps_that_learn_are_read_right(uv: Tensor) -> None:
    heatmaps = [torch.zeros(2, 17, CELLS, CELLS)]
    middle = (uv + 1) / 2 * CELLS - HALF_PIXEL
    learn(heatmaps, lambda: heatmap_loss(heatmaps[0], middle, torch.ones(2, 17)), 150, 0.1)
    found = decode_heatmaps(heatmaps[0].detach())
    torch.testing.assert_close(found[..., :2], uv, atol=0.02, rtol=0)


def test_what_is_not_labelled_does_not_count(uv: Tensor) -> None:
    heads = [torch.randn(2, channels, CELLS, CELLS) for channels in (1, 17, 34, 34)]
    weight = torch.ones(2, 17)
    weight[:, 4] = 0
    moved = uv.clone()
    moved[:, 4] = 0.9 - moved[:, 4]
    assert torch.equal(center_loss(*heads, uv, weight), center_loss(*heads, moved, weight))
    assert torch.equal(heatmap_loss(heads[1], uv * 9 + 9, weight), heatmap_loss(heads[1], moved * 9 + 9, weight))
    nothing = center_loss(*heads, uv, torch.zeros(2, 17))
    assert torch.isfinite(nothing).all() and float(heatmap_loss(heads[1], uv, torch.zeros(2, 17)).sum()) == 0


def test_a_keypoint_outside_the_crop_has_an_empty_heatmap(uv: Tensor) -> None:
    uv[:, 3, 0] = 1.3
    heads = [torch.full((2, channels, CELLS, CELLS), -8.0) for channels in (1, 17, 34, 34)]
    weight = torch.zeros(2, 17)
    weight[:, 3] = 1
    empty = center_loss(*heads, uv, weight)
    heads[1][:, 3, 5, 5] = 5.0
    assert (center_loss(*heads, uv, weight) > empty + 1).all()


def test_every_weight_of_movenet_learns(uv: Tensor) -> None:
    backbone = build_backbone("movenet_lightning", pretrained=True)
    features = backbone(255 * torch.rand(2, 3, 64, 64))
    loss = backbone.keypoint_loss(features, uv, torch.ones(2, 17))
    assert loss.shape == (2,)
    loss.sum().backward()
    missing = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []
