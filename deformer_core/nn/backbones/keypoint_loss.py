"""Losses on keypoint heatmaps. K keypoints, maps of H x W cells; places are (x, y) in cells, edges at 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HEATMAP_SIGMA = 2.0
"""Cells; of SimpleBaseline's and HRNet's targets."""


def bumps(middle: Tensor, present: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """Gaussians of height 1 about `middle` (B, K, 2), in cells' indices; empty where `present` (B, K) is 0.

    Returns (B, K, H, W).
    """
    columns = torch.arange(width, device=middle.device) - middle[..., :1]
    rows = torch.arange(height, device=middle.device) - middle[..., 1:]
    across, down = ((-steps.square() / (2 * sigma**2)).exp() for steps in (columns, rows))
    return down[..., :, None] * across[..., None, :] * present[..., None, None]


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss per map, (B, K): cells near a peak count little as background.

    logits, target: (B, K, H, W); peaks are the cells where the target is 1 (Zhou et al., "Objects as Points", 2019).
    """
    found, missed = F.logsigmoid(logits), F.logsigmoid(-logits)
    probability = found.exp()
    peak = (target > 1 - 1e-4).to(logits)
    loss = peak * (1 - probability).square() * found + (1 - target) ** 4 * probability.square() * missed
    return -loss.sum((2, 3))


def heatmap_loss(heatmaps: Tensor, middle: Tensor, weight: Tensor) -> Tensor:
    """Squared difference of heatmaps (B, K, H, W) from Gaussians over the Gaussians' own square, (B,).

    middle: (B, K, 2) true keypoints, in cells' indices; weight: (B, K), 0 where there is no label. A keypoint outside
    the map has an empty one.
    """
    height, width = heatmaps.shape[-2:]
    size = middle.new_tensor([width, height])
    inside = ((middle > -0.5) & (middle < size - 0.5)).all(-1).to(middle)
    target = bumps(middle, inside, height, width, HEATMAP_SIGMA)
    error = (heatmaps.float() - target).square().sum((2, 3)) / (torch.pi * HEATMAP_SIGMA**2)
    labelled = (weight > 0).to(middle)
    return (error * labelled).sum(1) / labelled.sum(1).clamp(min=1)
