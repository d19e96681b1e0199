"""HRNet (Sun et al., "Deep High-Resolution Representation Learning for Human Pose Estimation", CVPR 2019).

Branches at strides 4, 8, 16 and 32 run side by side and exchange what they see after every few blocks. Named as
in the original repository, which MMPose and timm follow.

The published pose networks fuse only the stride-4 branch at the very end. The other maps are the last module's
branches before that fusion (our choice): every one of their weights has been trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from deformer_core.nn.backbones.heatmaps import Maps, PoseBackbone, heatmap_layer
from deformer_core.nn.backbones.resnet import Bottleneck, bottlenecks, conv

STEM_WIDTH = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


def halve(inputs: int, outputs: int) -> list[nn.Module]:
    """To half the resolution by one convolution."""
    return [conv(inputs, outputs, 3, stride=2), nn.BatchNorm2d(outputs)]


@dataclass(frozen=True)
class Style:
    """What HRNet and its descendants do differently.

    block: of a branch, from its channels, its number and a rate of `DropPath`; depth: blocks of a branch in a
    module; stem_depth: of the first stage; modules: of stages 2, 3, 4; halve: see there; upsampling: its mode.
    """

    block: Callable[[int, int, float], nn.Module] = lambda channels, branch, drop: BasicBlock(channels)
    depth: int = 4
    stem_depth: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)
    halve: Callable[[int, int], list[nn.Module]] = halve
    upsampling: str = "nearest"
    drop_path: float = 0.0


class HighResolutionModule(nn.Module):
    """Some blocks on every branch, then each branch becomes the sum of all, resized. channels: of the branches.

    outputs: how many branches are fused; the others are returned as they are.
    """

    def __init__(self, channels: list[int], style: Style, drops: list[float], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(style.block(wide, branch, drop) for drop in drops)) for branch, wide in enumerate(channels)
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(channels, source, target, style) for source in range(len(channels)))
            for target in range(outputs)
        )
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def _path(channels: list[int], source: int, target: int, style: Style) -> nn.Module:
        inputs, outputs = channels[source], channels[target]
        if source == target:
            return nn.Identity()
        if source > target:
            resize = nn.Upsample(scale_factor=float(2 ** (source - target)), mode=style.upsampling)
            return nn.Sequential(conv(inputs, outputs, 1), nn.BatchNorm2d(outputs), resize)
        steps = [nn.Sequential(*style.halve(inputs, inputs), nn.ReLU()) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, nn.Sequential(*style.halve(inputs, outputs)))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(features) for branch, features in zip(self.branches, maps, strict=True)]
        fused = []
        for paths in self.fuse_layers:
            assert isinstance(paths, nn.ModuleList)
            parts = [path(features) for path, features in zip(paths, maps, strict=True)]
            fused.append(self.relu(sum(parts[1:], parts[0])))
        return fused + maps[len(fused) :]


class HighResolutionNet(PoseBackbone):
    """width: channels at stride 4, doubled at each further stride."""

    UNUSED = PoseBackbone.UNUSED | {
        r"(incre_modules|downsamp_modules|final_layer\.[01])\.": "classification",
        r"stage4\.\d+\.fuse_layers\.[123]\.": "the last fusion of coarse branches, which the pose networks do not have",
    }

    def __init__(
        self, width: int, style: Style | None = None, image_size: int = 256, image_width: int | None = None
    ) -> None:
        style = style or Style()
        a, b, c, d = (width * 2**branch for branch in range(4))
        super().__init__((a, b, c, d), image_size, image_width)
        self.conv1, self.bn1 = conv(3, STEM_WIDTH, 3, stride=2), nn.BatchNorm2d(STEM_WIDTH)
        self.conv2, self.bn2 = conv(STEM_WIDTH, STEM_WIDTH, 3, stride=2), nn.BatchNorm2d(STEM_WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = bottlenecks(STEM_WIDTH, STEM_WIDTH, style.stem_depth)
        stem = STEM_WIDTH * Bottleneck.EXPANSION
        self.transition1 = nn.ModuleList(
            [nn.Sequential(conv(stem, a, 3), nn.BatchNorm2d(a), nn.ReLU()), self._new_branch(stem, b)]
        )
        self.transition2 = nn.ModuleList([nn.Identity(), nn.Identity(), self._new_branch(b, c)])
        self.transition3 = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Identity(), self._new_branch(c, d)])
        blocks = style.depth * sum(style.modules)
        drops = [style.drop_path * block / (blocks - 1) for block in range(blocks)]
        stages = []
        for stage, count in enumerate(style.modules):
            modules = []
            for module in range(count):
                branches = stage + 2
                outputs = 1 if stage == 2 and module == count - 1 else branches
                rates, drops = drops[: style.depth], drops[style.depth :]
                modules.append(HighResolutionModule([a, b, c, d][:branches], style, rates, outputs))
            stages.append(nn.Sequential(*modules))
        self.stage2, self.stage3, self.stage4 = stages
        self.final_layer = heatmap_layer(a)

    @staticmethod
    def _new_branch(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Sequential(*halve(inputs, outputs), nn.ReLU()))

    def extract(self, images: Tensor) -> tuple[Maps, Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer1(self.relu(self.bn2(self.conv2(x))))
        maps = self.stage2([transition(x) for transition in self.transition1])
        for transition, stage in ((self.transition2, self.stage3), (self.transition3, self.stage4)):
            # The new branch starts from the coarsest one.
            maps = stage([move(features) for move, features in zip(transition, [*maps, maps[-1]], strict=True)])
        stride4, stride8, stride16, stride32 = maps
        return (stride4, stride8, stride16, stride32), self.final_layer(stride4)
