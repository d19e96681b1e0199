"""Deformable mesh cross-attention (DMA): each token looks at a few places of the image's feature maps.

A token samples around its reference point, the projection of its current 3D position: `points` places per
head and map, at offsets in pixels of that map, blended by weights that sum to 1 over all places of all maps
and one more entry for the global vector of the crop (a 1x1 map has nothing to sample). Outside the crop a map
is zero.

The maps' values are projected once and shared by all layers (our choice: it saves 40 % of the
multiplications). Three samplers give the same values: `sample_grid` (F.grid_sample, the faster in training),
`sample_gather` (plain indexing, for exported graphs, where grid_sample is not to be trusted) and `sample_fused`
(a kernel of our own, on a GPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.errors import InputError

Sampler = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]

SLOTS_AT_ONCE = 256
"""Slots whose corners `sample_gather` picks at once: few enough for a processor's cache, see docs/performance.md."""


def sample_grid(values: Sequence[Tensor], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples.

    values: one (B, H * D, h, w) map per level; places: (B, H, L, P, 2, S), x and y in crop coordinates;
    weights: (B, H, L, P, S). Returns (B, H * D, S). Slots come last: grid_sample reads such planes fastest.
    """
    batch, heads, _, _, _, slots = places.shape
    levels = []
    for level, value in enumerate(values):
        per_head = value.reshape(batch * heads, -1, *value.shape[2:])
        grid = places[:, :, level].flatten(0, 1).transpose(2, 3)  # (B * H, P, S, 2)
        samples = F.grid_sample(per_head, grid, align_corners=False)  # (B * H, D, P, S)
        levels.append((samples * weights[:, :, level].flatten(0, 1)[:, None]).sum(2))
    return sum(levels[1:], levels[0]).reshape(batch, -1, slots)


def sample_gather(values: Sequence[Tensor], places: Tensor, weights: Tensor) -> Tensor:
    """`sample_grid` by indexing the four corners of every place in one flat list of all maps' pixels.

    Every map gets a border of zeros, and places outside are moved onto it: no corner needs a test of its own.
    """
    batch, heads, n_maps, points, _, slots = places.shape
    sizes = [value.shape[2:] for value in values]
    strides = [width + 3 for _, width in sizes]  # one column of zeros on the left, two on the right
    areas = [(height + 3) * stride for (height, _), stride in zip(sizes, strides)]
    # (B, H, L, P, S); pixel centres lie at half integers (align_corners=False).
    x, column = _cells(places[..., 0, :], [width for _, width in sizes])
    y, row = _cells(places[..., 1, :], [height for height, _ in sizes])
    first = _per_map([sum(areas[:i]) + stride + 1 for i, stride in enumerate(strides)], places)
    index = row * _per_map(strides, places) + column + first  # exact: below 2^24
    right = weights * x
    left = weights - right
    below_left, below_right = left * y, right * y
    blend = torch.stack([left - below_left, right - below_right, below_left, below_right], 2)
    blend = blend.flatten(2, 4).transpose(2, 3)  # (B, H, S, K) with K = 4 corners x L x P
    corners = [[0] * n_maps, [1] * n_maps, strides, [stride + 1 for stride in strides]]
    offsets = torch.tensor(corners, dtype=torch.int32, device=places.device).repeat_interleave(points)
    # A row of `rows` is one head's part of one pixel of one crop; 32-bit numbers, for speed.
    planes = torch.arange(batch * heads, dtype=torch.int32, device=places.device).reshape(batch, heads, 1, 1)
    pixels = index.to(torch.int32).flatten(2, 3).transpose(2, 3) + planes * sum(areas)
    lookup = torch.cat([pixels] * 4, -1) + offsets
    flat = torch.cat([F.pad(value, (1, 2, 1, 2)).flatten(2) for value in values], 2)
    rows = flat.unflatten(1, (heads, -1)).transpose(2, 3).flatten(0, 2)
    parts = []
    for some, weight in zip(lookup.split(SLOTS_AT_ONCE, 2), blend.split(SLOTS_AT_ONCE, 2)):
        picked = rows.index_select(0, some.flatten()).unflatten(0, some.shape)  # (B, H, S', K, D)
        parts.append((weight[..., None, :] @ picked)[..., 0, :])
    return torch.cat(parts, 2).transpose(2, 3).reshape(batch, -1, slots)


def _cells(places: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Coordinates (B, H, L, P, S) along one axis of each map: how far past a pixel's centre, and which pixel.

    Held to -1..size, where nothing but the border is seen.
    """
    size = _per_map(sizes, places)
    pixels = ((places + 1) * (size / 2) - 0.5).clamp(min=-1).minimum(size)
    whole = pixels.detach().floor()
    return pixels - whole, whole


def _per_map(numbers: list[int], like: Tensor) -> Tensor:
    """(L, 1, 1) to go with (B, H, L, P, S)."""
    return torch.tensor(numbers).to(like)[:, None, None]


def sample_fused(values: Sequence[Tensor], places: Tensor, weights: Tensor) -> Tensor:
    """`sample_grid` without a tensor of samples, on a GPU; on a CPU it is `sample_grid`.

    Raises:
        InputError: there is no Triton.
    """
    if not places.is_cuda:
        return sample_grid(values, places, weights)
    try:
        from deformer_core.nn.triton_sampling import sample_triton
    except ImportError as error:
        raise InputError(f"sampling by Triton cannot be had ({error}): choose 'grid'") from error
    return sample_triton(values, places, weights)


SAMPLERS: dict[str, Sampler] = {"grid": sample_grid, "gather": sample_gather, "triton": sample_fused}


class DeformableMeshAttention(nn.Module):
    """Multi-scale deformable cross-attention from body tokens to the image.

    n_maps: number of maps; points: places per head and map; sampling: a key of `SAMPLERS`.
    """

    def __init__(self, dim: int, heads: int, n_maps: int, points: int = 2, sampling: str = "grid") -> None:
        super().__init__()
        if sampling not in SAMPLERS:
            raise InputError(f"unknown sampling '{sampling}': use one of {', '.join(SAMPLERS)}")
        self.heads, self.n_maps, self.points = heads, n_maps, points
        self.sample = SAMPLERS[sampling]
        self.offsets = nn.Linear(dim, heads * n_maps * points * 2)
        self.weights = nn.Linear(dim, heads * (n_maps * points + 1))
        self.project_out = nn.Linear(dim, dim)
        self._reset()

    def _reset(self) -> None:
        """Heads start out looking in different directions, points at growing distances, alike in weight."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)[:, None, None]
        distance = (torch.arange(self.points) + 0.5)[:, None]
        start = (direction * distance).expand(self.heads, self.n_maps, self.points, 2)
        with torch.no_grad():
            self.offsets.weight.zero_()
            self.offsets.bias.copy_(start.flatten())
            self.weights.weight.zero_()
            self.weights.bias.zero_()

    def forward(
        self, queries: Tensor, references: Tensor, values: Sequence[Tensor], pooled: Tensor
    ) -> Tensor:
        """Look at the image.

        queries: (B, S, dim); references: (B, S, 2) crop coordinates, which may lie outside the crop; values:
        `n_maps` projected maps (B, dim, h, w); pooled: (B, dim), the projected global vector.
        Returns (B, S, dim).
        """
        batch, slots, dim = queries.shape
        shape = (batch, self.heads, self.n_maps, self.points)
        # One unit of offset is a pixel of the map, 2 / size in crop coordinates; folded into the projection.
        pixel = torch.tensor([[2 / value.shape[3], 2 / value.shape[2]] for value in values]).to(queries)
        pixel = pixel[:, None].expand(self.heads, self.n_maps, self.points, 2).flatten()
        columns = queries.transpose(1, 2)
        offsets = _project(self.offsets.weight * pixel[:, None], self.offsets.bias * pixel, columns)
        places = offsets.reshape(*shape, 2, slots) + references.transpose(1, 2)[:, None, None, None]
        weights = _project(self.weights.weight, self.weights.bias, columns)
        weights = weights.reshape(batch, self.heads, -1, slots).softmax(2)
        sampled = self.sample(values, places, weights[:, :, :-1].reshape(*shape, slots))
        overall = weights[:, :, -1:] * pooled.reshape(batch, self.heads, -1, 1)
        return self.project_out((sampled + overall.reshape(batch, dim, slots)).transpose(1, 2))


def _project(weight: Tensor, bias: Tensor, columns: Tensor) -> Tensor:
    """weight @ columns + bias: a linear layer from and to slots in the last dimension. columns: (B, C, S)."""
    return torch.baddbmm(bias[:, None], weight.expand(columns.shape[0], -1, -1), columns)
