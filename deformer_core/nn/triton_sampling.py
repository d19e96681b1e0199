"""Sampling of deformable mesh cross-attention on a GPU by kernels of our own: corners, blend and sum in one pass.

A program takes some slots and one head of one sample, and reads, for each place, the four corners' vectors. For that
the D numbers of a head lie side by side: maps are turned to (B, h * w, H * D) and strung together once a call, some
5,400 vectors of a crop where all queries of the full mesh then read 390,000. Backward adds to the maps atomically, in
float32, so runs differ in their gradient's last bits; places and weights have one writer each.

Imported only where it runs: it needs Triton, and a GPU (CUDA, compute capability 8.0 or more) or Triton's interpreter.
"""
# mypy: disable-error-code="no-untyped-def"
# Kernels take pointers and numbers, and of annotations only `tl.constexpr` means something to them.

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

SLOTS = 32
"""Of a program."""

WIDEST = 64
"""Numbers of a vector that a program holds at once; longer ones it takes in turns."""

WARPS = 4
"""Of a program: a thread has 16 numbers of each corner, or 8, as much as one read brings of 16 bits wide."""


def sample_triton(values: Sequence[Tensor], places: Tensor, weights: Tensor) -> Tensor:
    """`sample_grid`, of the maps' type of number and in memory (B, S, H * D). Coordinates and sums are float32."""
    sizes = [side for value in values for side in value.shape[2:]]
    turned = torch.cat([value.flatten(2).transpose(1, 2) for value in values], 1)
    return _sample(turned, places, weights, sizes).transpose(1, 2)


@triton.jit
def _mine(n_slots, n_heads, PLACES: tl.constexpr, SLOTS: tl.constexpr):
    """This program's slots, and which of them there are; its sample, its head, and the number of its first place."""
    slots = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    plane = tl.program_id(1)
    return slots, slots < n_slots, plane.to(tl.int64) // n_heads, plane % n_heads, plane.to(tl.int64) * PLACES


@triton.jit
def _place(places, weights, line, slots, inside, n_slots, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Of one place a slot: how far right and below a pixel's centre it lies, its weight, that pixel's number in the
    map, and which of the four pixels around it are on the map."""
    x = tl.load(places + line * 2 * n_slots + slots, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(places + (line * 2 + 1) * n_slots + slots, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weights + line * n_slots + slots, mask=inside, other=0.0).to(tl.float32)
    # Pixel centres lie at half integers (align_corners=False).
    x = (x + 1) * (WIDTH / 2) - 0.5
    y = (y + 1) * (HEIGHT / 2) - 0.5
    near = inside & (x >= -1) & (x < WIDTH) & (y >= -1) & (y < HEIGHT)
    x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)  # far outside is no 32-bit integer
    column, row = tl.floor(x).to(tl.int32), tl.floor(y).to(tl.int32)
    left, right = near & (column >= 0), near & (column < WIDTH - 1)
    above, below = row >= 0, row < HEIGHT - 1
    on_map = (left & above, right & above, left & below, right & below)
    return x - column, y - row, weight, row * WIDTH + column, on_map


@triton.jit
def _read(x, pixels, on_map, numbers, stride, DIM: tl.constexpr):
    """The vectors (N, BLOCK) of pixels, zeros off the map. numbers: which of the vectors' numbers."""
    mask = on_map[:, None] & (numbers < DIM)
    return tl.load(x + pixels[:, None] * stride + numbers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    values, places, weights, out, n_slots, n_heads, n_pixels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """LEVELS: of each map its height, its width and the number of its first pixel."""
    slots, inside, sample, head, lines = _mine(n_slots, n_heads, len(LEVELS) * POINTS, SLOTS)
    stride = n_heads * DIM
    source = values + sample * n_pixels * stride + head * DIM
    for first in range(0, DIM, BLOCK):
        numbers = first + tl.arange(0, BLOCK)[None, :]
        found = tl.zeros((SLOTS, BLOCK), tl.float32)
        for level in tl.static_range(len(LEVELS)):
            width = LEVELS[level][1]
            pixels = source + LEVELS[level][2] * stride
            for point in tl.static_range(POINTS):
                line = lines + level * POINTS + point
                x, y, weight, pixel, on_map = _place(
                    places, weights, line, slots, inside, n_slots, LEVELS[level][0], width
                )
                a = _read(pixels, pixel, on_map[0], numbers, stride, DIM)
                b = _read(pixels, pixel + 1, on_map[1], numbers, stride, DIM)
                c = _read(pixels, pixel + width, on_map[2], numbers, stride, DIM)
                d = _read(pixels, pixel + width + 1, on_map[3], numbers, stride, DIM)
                top, bottom = weight * (1 - y), weight * y
                found += (top * (1 - x))[:, None] * a + (top * x)[:, None] * b
                found += (bottom * (1 - x))[:, None] * c + (bottom * x)[:, None] * d
        rows = out + sample * n_slots * stride + head * DIM + slots[:, None] * stride
        tl.store(rows + numbers, found.to(out.dtype.element_ty), mask=inside[:, None] & (numbers < DIM))


@triton.jit
def _backward(
    values, places, weights, d_out, d_values, d_places, d_weights, n_slots, n_heads, n_pixels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """All gradients; `d_values` is float32, and zero before."""
    slots, inside, sample, head, lines = _mine(n_slots, n_heads, len(LEVELS) * POINTS, SLOTS)
    stride = n_heads * DIM
    rows = d_out + sample * n_slots * stride + head * DIM
    start = sample * n_pixels * stride + head * DIM
    for level in tl.static_range(len(LEVELS)):
        height, width = LEVELS[level][0], LEVELS[level][1]
        pixels = values + start + LEVELS[level][2] * stride
        d_pixels = d_values + start + LEVELS[level][2] * stride
        for point in tl.static_range(POINTS):
            line = lines + level * POINTS + point
            x, y, weight, pixel, on_map = _place(places, weights, line, slots, inside, n_slots, height, width)
            top, bottom = weight * (1 - y), weight * y
            # Of each corner, d_out . its vector.
            a = tl.zeros((SLOTS,), tl.float32)
            b, c, d = a, a, a
            for first in range(0, DIM, BLOCK):
                numbers = first + tl.arange(0, BLOCK)[None, :]
                flow = _read(rows, slots, inside, numbers, stride, DIM)
                a += tl.sum(flow * _read(pixels, pixel, on_map[0], numbers, stride, DIM), 1)
                b += tl.sum(flow * _read(pixels, pixel + 1, on_map[1], numbers, stride, DIM), 1)
                c += tl.sum(flow * _read(pixels, pixel + width, on_map[2], numbers, stride, DIM), 1)
                d += tl.sum(flow * _read(pixels, pixel + width + 1, on_map[3], numbers, stride, DIM), 1)
                _add(d_pixels, pixel, on_map[0], numbers, stride, flow, top * (1 - x), DIM)
                _add(d_pixels, pixel + 1, on_map[1], numbers, stride, flow, top * x, DIM)
                _add(d_pixels, pixel + width, on_map[2], numbers, stride, flow, bottom * (1 - x), DIM)
                _add(d_pixels, pixel + width + 1, on_map[3], numbers, stride, flow, bottom * x, DIM)
            above, below = a + x * (b - a), c + x * (d - c)
            d_x = weight * (b - a + y * (d - c - b + a)) * (width / 2)
            d_y = weight * (below - above) * (height / 2)
            tl.store(d_weights + line * n_slots + slots, above + y * (below - above), mask=inside)
            tl.store(d_places + line * 2 * n_slots + slots, d_x, mask=inside)
            tl.store(d_places + (line * 2 + 1) * n_slots + slots, d_y, mask=inside)


@triton.jit
def _add(x, pixels, on_map, numbers, stride, flow, share, DIM: tl.constexpr):
    """Add each slot's share of its `flow` to a pixel."""
    mask = on_map[:, None] & (numbers < DIM)
    tl.atomic_add(x + pixels[:, None] * stride + numbers, flow * share[:, None], mask=mask, sem="relaxed")


@torch.library.custom_op("deformer::sample", mutates_args=())
def _sample(values: Tensor, places: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    """values: (B, N, H * D), all maps' pixels; sizes: each map's height and width. Returns (B, S, H * D)."""
    values, places, weights = values.contiguous(), places.contiguous(), weights.contiguous()
    out = _result(values, places)
    grid, numbers, settings = _launch(values, places, sizes)
    with torch.cuda.device_of(values):
        _forward[grid](values, places, weights, out, *numbers, **settings)
    return out


@torch.library.custom_op("deformer::sample_backward", mutates_args=())
def _sample_backward(
    values: Tensor, places: Tensor, weights: Tensor, sizes: list[int], d_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of values, places and weights."""
    values, places, weights = values.contiguous(), places.contiguous(), weights.contiguous()
    d_values = torch.zeros_like(values, dtype=torch.float32)
    d_places, d_weights = torch.empty_like(places), torch.empty_like(weights)
    grid, numbers, settings = _launch(values, places, sizes)
    with torch.cuda.device_of(values):
        arguments = (values, places, weights, d_out.contiguous(), d_values, d_places, d_weights)
        _backward[grid](*arguments, *numbers, **settings)
    return d_values.to(values.dtype), d_places, d_weights


def _launch(values: Tensor, places: Tensor, sizes: list[int]) -> tuple[tuple[int, int], tuple[int, ...], dict]:
    """The grid, the numbers and the settings of a kernel."""
    batch, heads, _, points, _, slots = places.shape
    dim = values.shape[2] // heads
    levels, first = [], 0
    for height, width in zip(sizes[::2], sizes[1::2]):
        levels.append((height, width, first))
        first += height * width
    block = min(WIDEST, triton.next_power_of_2(dim))
    shape = {"LEVELS": tuple(levels), "POINTS": points, "DIM": dim, "BLOCK": block, "SLOTS": SLOTS}
    return (triton.cdiv(slots, SLOTS), batch * heads), (slots, heads, first), {**shape, "num_warps": WARPS}


def _result(values: Tensor, places: Tensor) -> Tensor:
    return values.new_empty(values.shape[0], places.shape[-1], values.shape[2])


@_sample.register_fake
def _(values: Tensor, places: Tensor, *_: object) -> Tensor:
    return _result(values, places)


@_sample_backward.register_fake
def _(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[:3])


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _flow_back(ctx, d_out: Tensor):
    return *_sample_backward(*ctx.saved_tensors, ctx.sizes, d_out), None


_sample.register_autograd(_flow_back, setup_context=_keep)
