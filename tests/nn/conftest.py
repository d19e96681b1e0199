"""A decoder small enough to test, on the shipped body and a backbone without an encoder."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology
from deformer_core.nn.backbones import Backbone, BackboneOutput
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer

TINY = DeFormerConfig(dim=16, heads=2, ffn=16, layers=2, points=1, regressor_hidden=32, regressor_blocks=1)


class AveragePyramid(Backbone):
    """Channels from one convolution, averaged down to each stride."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size, self.channels, self.pooled_channels = 64, (6, 6, 6, 6), 6
        self.stem = nn.Conv2d(3, 6, 1)
        self.keypoints = nn.Linear(6, 51)

    def forward(self, images: Tensor) -> BackboneOutput:
        features = self.stem(images / 255)
        a, b, c, d = (nn.functional.avg_pool2d(features, stride) for stride in (4, 8, 16, 32))
        pooled = features.mean((2, 3))
        x, y, score = self.keypoints(pooled).unflatten(1, (17, 3)).unbind(-1)
        return BackboneOutput((a, b, c, d), pooled, torch.stack([x.tanh(), y.tanh(), score.sigmoid()], -1))


def wake(model: nn.Module) -> None:
    """Give a fresh model's zero-initialised layers weights, so that everything has a say."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)


@pytest.fixture
def build(body: BodyTopology, seed: int) -> Callable[..., DeFormer]:
    def make(awake: bool = True, **changes: object) -> DeFormer:
        model = DeFormer(replace(TINY, **changes), body, AveragePyramid())  # type: ignore[arg-type]
        if awake:
            wake(model)
        return model.eval()

    return make


@pytest.fixture
def crops(seed: int) -> tuple[Tensor, Tensor]:
    """Two images and boxes."""
    return torch.rand(2, 3, 64, 64) * 255, torch.tensor([[0.1, -0.2, 0.2], [0.0, 0.1, 0.4]])
