"""The pose networks, each with every kind of its parts but few of them."""

from collections.abc import Callable

from deformer_core.nn.backbones.aggpose import AggPose
from deformer_core.nn.backbones.heatmaps import PoseBackbone
from deformer_core.nn.backbones.hrformer import HRFormer
from deformer_core.nn.backbones.hrnet import HighResolutionNet, Style
from deformer_core.nn.backbones.resnet import ResNet

SMALL: dict[str, Callable[..., PoseBackbone]] = {
    "resnet": lambda **size: ResNet((1, 2, 1, 1), 8, 16, **size),
    "hrnet": lambda **size: HighResolutionNet(8, Style(depth=1, stem_depth=1, modules=(1, 1, 1)), **size),
    "hrformer": lambda **size: HRFormer(8, 2, 0.1, modules=(1, 1, 1), **size),
    "aggpose": lambda **size: AggPose((8, 16, 24, 32), (1, 1, 2, 1), (1, 2, 3, 4), **size),
}
