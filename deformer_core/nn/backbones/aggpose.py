"""AggPose (Cao et al., "Deep Aggregation Vision Transformer for Infant Pose Estimation", IJCAI 2022, 2205.05277).

SegFormer's blocks (attention to a thinned-out map, a feed-forward network with a depthwise convolution) on
branches at strides 4, 8, 16 and 32. Stage t adds branch t; after every stage each branch takes in its
neighbours by a feed-forward network on all of them. Named as in the authors' repository.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.nn.backbones.heatmaps import NUM_KEYPOINTS, DropPath, Maps, PoseBackbone
from deformer_core.nn.backbones.hrformer import linear

LEVELS = (1, 2, 3, 4)
FFN_RATIO = 4


class Depthwise(nn.Module):
    """3x3 convolution within each channel of (B, H, W, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(self.dwconv(channels_first(x)))


class MixFFN(nn.Module):
    """Linear, depthwise convolution, GELU, linear; on (B, H, W, C)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = linear(inputs, hidden), Depthwise(hidden), linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class ReducedAttention(nn.Module):
    """Self-attention in which each `reduction` x `reduction` cells share one key and value; on (B, H, W, C)."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv = linear(channels, channels), linear(channels, 2 * channels)
        self.proj = linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        if self.reduction > 1:
            seen = self.norm(channels_last(self.sr(channels_first(x))))
        query = self.q(x).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(seen).flatten(1, 2).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2).reshape(x.shape))


class Block(nn.Module):
    """Attention, then the feed-forward network, each added to its input."""

    def __init__(self, channels: int, heads: int, reduction: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn = ReducedAttention(channels, heads, reduction)
        self.mlp = MixFFN(channels, channels * FFN_RATIO, channels)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """To a coarser map by a convolution whose windows overlap; (B, H, W, C) to (B, H', W', C')."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.proj(channels_first(x))))


class Upsample(nn.Module):
    """Feed-forward network, then each cell repeated."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.mlp, self.factor = MixFFN(inputs, outputs, outputs), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).repeat_interleave(self.factor, 1).repeat_interleave(self.factor, 2)


class AggPose(PoseBackbone):
    """depths: blocks of the newest branch in each stage; the older branches have `depths[0]`; widths: channels."""

    HEAD = ("final_layer.",)

    def __init__(
        self,
        widths: tuple[int, int, int, int] = (64, 128, 320, 512),
        depths: tuple[int, int, int, int] = (3, 6, 40, 3),
        heads: tuple[int, int, int, int] = (1, 2, 5, 8),
        reductions: tuple[int, int, int, int] = (8, 4, 2, 1),
        drop_path: float = 0.1,
        image_size: int = 256,
        image_width: int | None = None,
    ) -> None:
        super().__init__(widths, image_size, image_width)
        last = sum(depths) - 1
        self.patch_embed1 = PatchEmbedding(3, widths[0], kernel=7, stride=4)
        for level in LEVELS[1:]:
            self.add_module(f"patch_embed{level}", PatchEmbedding(widths[level - 2], widths[level - 1]))
        for stage in LEVELS:
            for level in LEVELS[:stage]:
                index, width = level - 1, widths[level - 1]
                first = sum(depths[:index])
                blocks = [
                    Block(width, heads[index], reductions[index], drop_path * (first + block) / last)
                    for block in range(depths[index] if level == stage else depths[0])
                ]
                self.add_module(f"block{branch_name(stage, level)}", nn.ModuleList(blocks))
                self.add_module(f"norm{branch_name(stage, level)}", nn.LayerNorm(width, eps=1e-6))
                if stage > 1:
                    self._add_aggregation(stage, level, widths)
        finest = widths[0]
        for level in LEVELS[1:]:
            self.add_module(f"upsample4_{level}1", Upsample(widths[level - 1], finest, 2 ** (level - 1)))
        self.final = MixFFN(finest * len(LEVELS), finest, finest)
        self.final_layer = MixFFN(finest, finest, NUM_KEYPOINTS)

    def _add_aggregation(self, stage: int, level: int, widths: tuple[int, ...]) -> None:
        """What brings the neighbours of a branch to its resolution after a stage, and joins them."""
        width, neighbours = widths[level - 1], 1
        if level > 1:
            self.add_module(down_name(stage, level), PatchEmbedding(widths[level - 2], width))
            neighbours += 1
        if level < stage:
            self.add_module(up_name(stage, level), Upsample(widths[level], width, 2))
            neighbours += 1
        self.add_module(merge_name(stage, level), MixFFN(width * neighbours, width, width))

    def extract(self, images: Tensor) -> tuple[Maps, Tensor]:
        maps = [self.patch_embed1(channels_last(images))]
        for stage in LEVELS:
            if stage > 1:
                maps.append(self.get_submodule(f"patch_embed{stage}")(maps[-1]))
            if stage > 2:
                maps[:-1] = self._aggregate(stage - 1, maps[:-1])
            maps = [self._run_blocks(branch_name(stage, level), x) for level, x in zip(LEVELS, maps)]
        maps = self._aggregate(LEVELS[-1], maps)
        resized = [self.get_submodule(f"upsample4_{level}1")(x) for level, x in zip(LEVELS[1:], maps[1:])]
        heatmaps = self.final_layer(self.final(torch.cat([maps[0], *resized], -1)))
        stride4, stride8, stride16, stride32 = (channels_first(x) for x in maps)
        return (stride4, stride8, stride16, stride32), channels_first(heatmaps)

    def _run_blocks(self, name: str, x: Tensor) -> Tensor:
        blocks = self.get_submodule(f"block{name}")
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x)
        return self.get_submodule(f"norm{name}")(x)

    def _aggregate(self, stage: int, maps: list[Tensor]) -> list[Tensor]:
        """Every branch with its neighbours as they were."""
        merged = []
        for level, x in zip(LEVELS, maps):
            parts = [x]
            if level > 1:
                parts.insert(0, self.get_submodule(down_name(stage, level))(maps[level - 2]))
            if level < stage:
                parts.append(self.get_submodule(up_name(stage, level))(maps[level]))
            if stage == 2 and level == 2:
                parts.reverse()  # the one place where the published weights have this order
            merged.append(self.get_submodule(merge_name(stage, level))(torch.cat(parts, -1)))
        return merged


def branch_name(stage: int, level: int) -> str:
    return f"{level}_{stage - level}" if stage > level else str(level)


def down_name(stage: int, level: int) -> str:
    return f"patch_embed{level - 1}{level}{'k' * (stage - 2)}"


def up_name(stage: int, level: int) -> str:
    return f"upsample{stage - 1}_{level + 1}{level}"


def merge_name(stage: int, level: int) -> str:
    return f"merge_{''.join(map(str, LEVELS[:stage]))}_{level}"


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
