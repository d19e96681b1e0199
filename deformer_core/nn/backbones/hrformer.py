"""HRFormer (Yuan et al., "High-Resolution Transformer for Dense Prediction", NeurIPS 2021, arXiv 2110.09408).

HRNet's branches and exchanges, with transformer blocks: self-attention within windows of 7x7 cells, and a
feed-forward network with a depthwise convolution, through which the windows learn of each other. Named as in
MMPose; the original repository's names are translated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.nn.backbones.heatmaps import DropPath
from deformer_core.nn.backbones.hrnet import HighResolutionNet, Style
from deformer_core.nn.backbones.resnet import conv

WINDOW = 7
FFN_RATIO = 4


class WindowAttention(nn.Module):
    """Multi-head self-attention in a window, with a learned bias for each relative position."""

    relative_position: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = linear(channels, 3 * channels), linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * WINDOW - 1) ** 2, heads) * 0.02)
        row, column = torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")
        down, right = (flat[:, None] - flat + WINDOW - 1 for flat in (row.flatten(), column.flatten()))
        self.register_buffer("relative_position", down * (2 * WINDOW - 1) + right, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (windows, WINDOW^2, C)."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position].permute(2, 0, 1)
        attended = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype)[None])
        return self.proj(attended.transpose(1, 2).flatten(2))


class LocalAttention(nn.Module):
    """Cuts maps (B, H, W, C) into windows, padded with zeros evenly on both sides, and attends in each."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attn = WindowAttention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        below, right = -height % WINDOW, -width % WINDOW
        top, left = below // 2, right // 2
        x = F.pad(x, (0, 0, left, right - left, top, below - top))
        rows, columns = x.shape[1] // WINDOW, x.shape[2] // WINDOW
        windows = x.unflatten(2, (columns, WINDOW)).unflatten(1, (rows, WINDOW)).transpose(2, 3)
        attended = self.attn(windows.flatten(3, 4).flatten(0, 2))
        attended = attended.unflatten(1, (WINDOW, WINDOW)).unflatten(0, (-1, rows, columns)).transpose(2, 3)
        return attended.flatten(3, 4).flatten(1, 2)[:, top : top + height, left : left + width]


class ConvolutionalFFN(nn.Module):
    """1x1 to four times the channels, 3x3 within each, 1x1 back; normalised and activated each time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels * FFN_RATIO
        self.fc1, self.norm1 = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.dw3x3, self.norm2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)
        self.fc2, self.norm3 = nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W)."""
        x = F.gelu(self.norm1(self.fc1(x)))
        x = F.gelu(self.norm2(self.dw3x3(x)))
        return F.gelu(self.norm3(self.fc2(x)))


class HRFormerBlock(nn.Module):
    """Attention, then the feed-forward network, each added to its input. On maps (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attn, self.ffn = LocalAttention(channels, heads), ConvolutionalFFN(channels)
        self.drop_path = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return (x.permute(0, 3, 1, 2) + self.drop_path(self.ffn(self.norm2(x).permute(0, 3, 1, 2)))).contiguous()


def separable_halve(inputs: int, outputs: int) -> list[nn.Module]:
    """To half the resolution by a convolution within each channel and one across them."""
    within, across = conv(inputs, inputs, 3, stride=2, groups=inputs), conv(inputs, outputs, 1)
    return [within, nn.BatchNorm2d(inputs), across, nn.BatchNorm2d(outputs)]


class HRFormer(HighResolutionNet):
    """width: channels at stride 4; heads: at stride 4; both double at each further stride."""

    def __init__(
        self,
        width: int,
        heads: int,
        drop_path: float,
        modules: tuple[int, int, int] = (1, 4, 2),
        image_size: int = 256,
        image_width: int | None = None,
    ) -> None:
        style = Style(
            block=lambda channels, branch, drop: HRFormerBlock(channels, heads * 2**branch, drop),
            depth=2,
            stem_depth=2,
            modules=modules,
            halve=separable_halve,
            upsampling="bilinear",
            drop_path=drop_path,
        )
        super().__init__(width, style, image_size, image_width)

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original repository has `mlp` for `ffn`, and query, key and value apart."""
        if not any(".q_proj." in key for key in state):
            return state
        renamed: dict[str, Tensor] = {}
        for key, value in state.items():
            if ".q_proj." in key:
                parts = [state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
                renamed[key.replace("q_proj", "qkv")] = torch.cat(parts)
            elif ".k_proj." not in key and ".v_proj." not in key:
                renamed[key.replace(".out_proj.", ".proj.").replace(".mlp.", ".ffn.")] = value
        return renamed


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts out as in vision transformers."""
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
