"""Image backbones: from a crop to a feature pyramid, a global vector and a first guess of 2D keypoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from deformer_core.errors import InputError

MOVENETS = ("movenet_thunder", "movenet_lightning")
"""Their weights are shipped."""
POSE_BACKBONES = ("resnet50", "hrnet_w32", "hrnet_w48", "hrformer_small", "hrformer_base", "aggpose_large")
"""Their weights are the user's, see `pretrained.load_pretrained`."""
BACKBONES = MOVENETS + POSE_BACKBONES


class BackboneOutput(NamedTuple):
    """What a backbone makes of a batch of crops.

    Attributes:
        maps: four maps (B, C_i, H/s, W/s) at strides s = 4, 8, 16, 32.
        pooled: (B, C) one vector for the whole crop.
        keypoints: (B, 17, 3) x, y in crop coordinates (-1 and 1 are the crop's edges, x right, y down) and a
            score in 0..1, in COCO-17 order.
        heads: the maps that the keypoints were read from, as `Backbone.keypoint_loss` takes them.
    """

    maps: tuple[Tensor, Tensor, Tensor, Tensor]
    pooled: Tensor
    keypoints: Tensor
    heads: tuple[Tensor, ...] = ()


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

    def keypoint_loss(self, features: BackboneOutput, uv: Tensor, weight: Tensor) -> Tensor:
        """How wrong the `heads` are, (B,), for training the backbone to find keypoints.

        uv: (B, 17, 2) true keypoints, crop coordinates; weight: (B, 17), 0 where there is no label.
        """
        raise InputError(f"{type(self).__name__} has no keypoint loss: set loss.backbone_keypoints to 0")

    def train(self, mode: bool = True) -> Backbone:
        """A frozen backbone stays in evaluation mode: its batch statistics are as fixed as its weights."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))


def build_backbone(
    name: str,
    pretrained: bool = True,
    weights: str | Path | None = None,
    image_size: int | None = None,
    image_width: int | None = None,
) -> Backbone:
    """Build a backbone by its name in `BACKBONES`, in evaluation mode.

    pretrained: with its shipped weights, or those in the file `weights` (see `load_pretrained`); else random
    ones. image_size: side of the crops, the network's own by default. image_width: how many central columns of
    them a pose network sees.

    Raises:
        InputError: the name is unknown; the weights are not there, or do not fit; MoveNet is asked to see less
            than whole crops.
    """
    if name not in BACKBONES:
        raise InputError(f"unknown backbone '{name}': use one of {', '.join(BACKBONES)}")
    if name in POSE_BACKBONES:
        from deformer_core.nn.backbones.pretrained import build_pose_backbone, load_pretrained

        backbone = build_pose_backbone(name, image_size or 256, image_width)
        if pretrained:
            if weights is None:
                raise InputError(f"no weights of {name} are shipped: name a file of published ones (backbone_weights)")
            load_pretrained(backbone, weights)
        return backbone.eval()
    from deformer_core.nn.backbones.movenet import build_movenet

    if weights is not None or image_width is not None:
        raise InputError(f"{name} has weights of its own and sees whole crops: leave out its weights and image_width")
    movenet = build_movenet(name, pretrained)
    movenet.image_size = image_size or movenet.image_size
    return movenet
