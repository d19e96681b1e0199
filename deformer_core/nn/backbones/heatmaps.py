"""What the pose networks have in common: ImageNet's normalisation, a view of the crop, a head of heatmaps."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.nn.backbones import Backbone, BackboneOutput
from deformer_core.nn.backbones.keypoint_loss import heatmap_loss

NUM_KEYPOINTS = 17
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
HALF_PIXEL = 0.5 / 4
"""Cells of the heatmaps, at stride 4. As in the training of HRNet and MMPose, cell i is the pixel of index 4 i, whose
centre lies at 4 i + 0.5."""
FAINT, FLAT = 0.01, 0.05
"""Heatmap values below the first count as the first, curvatures below the second as the second: no refinement."""

Maps = tuple[Tensor, Tensor, Tensor, Tensor]


class PoseBackbone(Backbone):
    """A network trained for 2D pose, one heatmap per keypoint at stride 4.

    image_size: side of the square crop; image_width: the network sees only so many central columns of it (its
    maps cover only these), all by default; channels: of its maps.

    Its modules are named as in the published weights; the head's are `HEAD`. `UNUSED` are patterns of published
    keys that are left out on purpose, by the reason.
    """

    HEAD: tuple[str, ...] = ("deconv_layers.", "final_layer.")
    UNUSED: dict[str, str] = {r"(fc|classifier)\.": "classification", r".*\.relative_position_index": "recomputed"}
    mean: Tensor
    std: Tensor

    def __init__(self, channels: tuple[int, int, int, int], image_size: int, image_width: int | None) -> None:
        super().__init__()
        self.channels, self.pooled_channels = channels, channels[3]
        self.image_size, self.image_width = image_size, image_width or image_size
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> BackboneOutput:
        height, width = images.shape[-2:]
        seen = width * self.image_width // self.image_size
        if height % 32 or seen % 32 or seen * self.image_size != width * self.image_width:
            raise InputError(
                f"the backbone got images of {width}x{height} pixels of which it sees {seen} columns: "
                "both height and columns must be multiples of 32"
            )
        left = (width - seen) // 2
        maps, heatmaps = self.extract((images[..., left : left + seen] - self.mean) / self.std)
        x, y, score = decode_heatmaps(heatmaps).unbind(-1)
        keypoints = torch.stack((x * (seen / width), y, score), -1)
        return BackboneOutput(maps, maps[3].mean((2, 3)), keypoints, (heatmaps,))

    def keypoint_loss(self, features: BackboneOutput, uv: Tensor, weight: Tensor) -> Tensor:
        (heatmaps,) = features.heads
        cells = uv.new_tensor([heatmaps.shape[3], heatmaps.shape[2]])
        seen = torch.cat((uv[..., :1] * (self.image_size / self.image_width), uv[..., 1:]), -1)
        return heatmap_loss(heatmaps, (seen + 1) / 2 * cells - HALF_PIXEL, weight)

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Maps, Tensor]:
        """Maps at strides 4, 8, 16, 32 and heatmaps (B, 17, H/4, W/4) of normalised images (B, 3, H, W)."""

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Other published weights of the same network in this module's names."""
        return state


def decode_heatmaps(heatmaps: Tensor) -> Tensor:
    """Keypoints (B, K, 3): x, y in coordinates of the heatmaps' own image (-1..1) and score, from (B, K, h, w).

    The highest cell, refined by the parabola through the logarithms of it and its neighbours, which is exact for
    a Gaussian (Zhang et al., "Distribution-Aware Coordinate Representation", CVPR 2020).
    """
    height, width = heatmaps.shape[-2:]
    flat = heatmaps.float().flatten(2)
    peak, cell = flat.max(2)
    column, row = cell % width, cell // width
    places = []
    for position, size, step in ((column, width, 1), (row, height, width)):
        inside = (position > 0) & (position < size - 1)
        apart = inside.to(cell.dtype) * step
        before, middle, after = (
            flat.gather(2, (cell + shift)[..., None])[..., 0].clamp(min=FAINT).log() for shift in (-apart, 0, apart)
        )
        offset = (after - before) / 2 / (2 * middle - before - after).clamp(min=FLAT)
        places.append((position + offset.clamp(-0.5, 0.5) + HALF_PIXEL) * (2 / size) - 1)
    return torch.stack((*places, peak.clamp(0, 1)), -1)


def heatmap_layer(inputs: int) -> nn.Conv2d:
    """The last layer of a head. Starts near zero: an untrained head is sure of nothing."""
    layer = nn.Conv2d(inputs, NUM_KEYPOINTS, 1)
    nn.init.normal_(layer.weight, std=0.001)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class DropPath(nn.Module):
    """Leaves out a residual branch for a random share of the samples (Huang et al., "Stochastic Depth", 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = torch.rand(shape, device=x.device, dtype=x.dtype) >= self.rate
        return x * kept / (1 - self.rate)
