"""Joints located in a volume: the crop's plane and depth, read straight from the image.

Keypoints are peaks, one hypothesis each, and say nothing of depth; what a body's deepest features know of it
reaches a reconstruction through them only in part. A volume of weights for every joint, whose mean is the joint
(integral regression, Sun et al., ECCV 2018), gives the backbone a direct signal of depth and of which side is
which, and the initial regressor a second opinion. The paper has none; our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.nn.precision import full_precision

DEPTHS = 8
"""Planes of the volume: a mean over them is finer than their distance (MeTRAbs, FG 2020, uses as many)."""
REACH = 1.2
"""Metres before and behind the middle of the hips that the volume spans."""


class JointVolume(nn.Module):
    """Maps of strides 16 and 32 to the joints' places.

    channels: of the two maps; width: of the hidden map, of stride 16.
    """

    def __init__(self, channels: Sequence[int], width: int, n_joints: int) -> None:
        super().__init__()
        shallow, deep = channels
        self.n_joints = n_joints
        self.shallow = nn.Conv2d(shallow, width, 1)
        self.deep = nn.Conv2d(deep, width, 1)
        self.weigh = nn.Conv2d(width, n_joints * DEPTHS, 1)
        nn.init.normal_(self.weigh.weight, std=0.01)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """shallow: (B, C, h, w), deep: (B, C', h / 2, w / 2). Returns (B, J, 4):

        x, y in the maps' coordinates, -1..1 from border to border; z in metres from the middle of the hips, away
        from the camera; and the spread of z over the volume, metres: how unsure it is.
        """
        wide = F.interpolate(self.deep(deep), scale_factor=2.0, mode="bilinear", align_corners=False)
        weights = self.weigh(F.gelu(wide + self.shallow(shallow))).unflatten(1, (self.n_joints, DEPTHS))
        height, width = weights.shape[-2:]
        with full_precision(weights.device):
            weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
            volume = weights.flatten(2).softmax(-1).unflatten(2, (DEPTHS, height, width))
            rows, planes = volume.sum(4), volume.sum((3, 4))
            x = volume.sum((2, 3)) @ _centres(width).to(volume)
            y = rows.sum(2) @ _centres(height).to(volume)
            depths = REACH * _centres(DEPTHS).to(volume)
            z = planes @ depths
            spread = (planes @ depths.square() - z.square()).clamp(min=1e-6).sqrt()
        return torch.stack([x, y, z, spread], -1)


def _centres(count: int) -> Tensor:
    """Of so many equal parts of -1..1."""
    return (torch.arange(count) + 0.5) * (2 / count) - 1
