"""Image backbones: from a crop to a feature pyramid, a global vector and a first guess of 2D keypoints."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from deformer_core.errors import InputError

BACKBONES = ("movenet_thunder", "movenet_lightning")


class BackboneOutput(NamedTuple):
    """What a backbone makes of a batch of crops.

    Attributes:
        maps: four maps (B, C_i, H/s, W/s) at strides s = 4, 8, 16, 32.
        pooled: (B, C) one vector for the whole crop.
        keypoints: (B, 17, 3) x, y in crop coordinates (-1 and 1 are the crop's edges, x right, y down) and a
            score in 0..1, in COCO-17 order.
    """

    maps: tuple[Tensor, Tensor, Tensor, Tensor]
    pooled: Tensor
    keypoints: Tensor


class Backbone(nn.Module, ABC):
    """Interface of every backbone.

    Attributes:
        image_size: side in pixels of the square crop it was trained on.
        channels: channels of the maps at strides 4, 8, 16, 32.
        pooled_channels: length of the global vector.
    """

    image_size: int
    channels: tuple[int, int, int, int]
    pooled_channels: int

    @abstractmethod
    def forward(self, images: Tensor) -> BackboneOutput:
        """Images (B, 3, H, W) float32 RGB in 0..255, H and W multiples of 32."""


def build_backbone(name: str, pretrained: bool = True) -> Backbone:
    """Build a backbone by its name in `BACKBONES`, with the shipped weights or random ones.

    Raises:
        InputError: the name is unknown, or its weight file is not installed.
    """
    if name not in BACKBONES:
        raise InputError(f"unknown backbone '{name}': use one of {', '.join(BACKBONES)}")
    from deformer_core.nn.backbones.movenet import build_movenet

    return build_movenet(name, pretrained)
