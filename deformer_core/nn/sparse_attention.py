"""Body sparse self-attention (BSSA): attention between the tokens that a SCAP links.

The SCAP's element mask defines the result. Three executions give it, equal to rounding:

- `dense_masked`: everything against everything with the mask as a bias; the simplest graph to export, and good for
  few tokens;
- `tile_gather`: each row of 16x16 tiles against its own non-empty tiles only, rows of like degree together;
  memory and time grow with the mesh, not with its square;
- `triton_attention`: the same by kernels of our own, on a GPU.

Their tables come with the SCAP, and are the same for all layers of a decoder: these share one `LinkedAttention`.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.body.scap import Scap
from deformer_core.body.scap_tables import TILE
from deformer_core.errors import InputError
from deformer_core.nn.tile_lists import TileList

TILES_AT_ONCE = 256
"""Tiles gathered by one step of `tile_gather`: few enough to stay in a processor's cache (twice as fast as all)."""


class TileBucket(NamedTuple):
    """Some rows of tiles with the same number K of columns, see `deformer_core.body.scap_tables.Bucket`."""

    rows: Tensor
    """(R,) int64."""
    columns: Tensor
    """(R, K) int64."""
    bias: Tensor
    """(R, 16, K * 16), 0 where linked and -inf elsewhere."""


def dense_masked(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v. q, k, v: (B, H, S, D); bias: (S, S), 0 or -inf. Returns as q."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


def tile_gather(q: Tensor, k: Tensor, v: Tensor, buckets: list[TileBucket]) -> Tensor:
    """The same over tiles. q, k, v: (B, H, S, D), every row of tiles in one bucket. Returns (B, H, S, D)."""
    batch, heads, slots, dim = q.shape
    tiled = (batch * heads, slots // TILE, TILE, dim)
    q, k, v = (x.reshape(tiled) for x in (q, k, v))
    outputs = []
    for rows, columns, bias in buckets:
        n_rows, degree = columns.shape
        gathered = (batch * heads, n_rows, degree * TILE, dim)
        keys = k.index_select(1, columns.flatten()).reshape(gathered)
        values = v.index_select(1, columns.flatten()).reshape(gathered)
        queries = q.index_select(1, rows) / math.sqrt(dim)
        attention = (queries @ keys.transpose(-1, -2) + bias.to(q.dtype)).softmax(-1)
        outputs.append(attention @ values)
    place = torch.argsort(torch.cat([bucket.rows for bucket in buckets]))
    return torch.cat(outputs, 1).index_select(1, place).reshape(batch, heads, slots, dim)


class DenseMasked(nn.Module):
    """`dense_masked` with a SCAP's mask. q, k, v: (B, H, S, D), as of the modules below."""

    bias: Tensor

    def __init__(self, scap: Scap) -> None:
        super().__init__()
        self.register_buffer("bias", _bias(torch.from_numpy(scap.dense_mask())), persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dense_masked(q, k, v, self.bias)


class TileGather(nn.Module):
    """`tile_gather` over a SCAP's tiles."""

    def __init__(self, scap: Scap) -> None:
        super().__init__()
        self.n_buckets = 0
        for bucket in scap.tables.buckets:
            n_rows = max(1, TILES_AT_ONCE // bucket.columns.shape[1])
            for rows, columns, masks in zip(*(torch.from_numpy(array).split(n_rows) for array in bucket)):
                for name, value in zip(TileBucket._fields, (rows, columns, _bias(masks))):
                    self.register_buffer(f"bucket{self.n_buckets}_{name}", value, persistent=False)
                self.n_buckets += 1

    @property
    def buckets(self) -> list[TileBucket]:
        names = TileBucket._fields
        return [TileBucket(*(getattr(self, f"bucket{i}_{name}") for name in names)) for i in range(self.n_buckets)]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tile_gather(q, k, v, self.buckets)


class TritonTiles(nn.Module):
    """The same over a SCAP's tiles by GPU kernels, see `triton_attention`. Errors: `InputError` without Triton."""

    def __init__(self, scap: Scap) -> None:
        super().__init__()
        self.rows, self.columns = TileList(scap.tables.rows), TileList(scap.tables.columns)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        try:
            from deformer_core.nn.triton_attention import attend_tiles
        except ImportError as error:
            raise InputError(f"attention by Triton cannot be had ({error}): choose 'tiles'") from error
        return attend_tiles(q, k, v, self.rows, self.columns)


EXECUTIONS = {"dense": DenseMasked, "tiles": TileGather, "triton": TritonTiles}
BACKENDS = ("auto", *EXECUTIONS)


class Choice(NamedTuple):
    """Keys of `EXECUTIONS`, by where the tokens are."""

    cpu: str
    cuda: str


DENSE_LIMITS = {"cpu": 512, "cuda": 1024}
"""Slots up to which "auto" is dense."""


def choose_executions(backend: str, n_slots: int) -> Choice:
    """What a backend, of `BACKENDS`, stands for. A CPU has no Triton, and a GPU need not have it."""
    if backend == "triton":
        return Choice("tiles", "triton")
    if backend != "auto":
        return Choice(backend, backend)
    kernels = "triton" if find_spec("triton") else "tiles"
    return Choice(
        cpu="dense" if n_slots <= DENSE_LIMITS["cpu"] else "tiles",
        cuda="dense" if n_slots <= DENSE_LIMITS["cuda"] else kernels,
    )


class LinkedAttention(nn.Module):
    """Softmax attention over the links of a SCAP, by the execution that suits the device. It has no weights.

    The mask is a constant of the body: it is not in the state dict. `backend` is one of `BACKENDS`.
    """

    def __init__(self, scap: Scap, backend: str = "auto") -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise InputError(f"unknown attention '{backend}': use one of {', '.join(BACKENDS)}")
        self.choice = choose_executions(backend, scap.n_slots)
        self.executions = nn.ModuleDict({name: EXECUTIONS[name](scap) for name in sorted(set(self.choice))})

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (B, H, S, D) in slot order. Returns (B, H, S, D)."""
        attended: Tensor = self.executions[self.choice.cuda if q.is_cuda else self.choice.cpu](q, k, v)
        return attended


class BodySparseAttention(nn.Module):
    """Multi-head self-attention over the slots of a SCAP. attend: whose tables may be shared with other layers."""

    def __init__(self, dim: int, heads: int, attend: LinkedAttention) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"attention of width {dim} cannot have {heads} heads: choose a divisor of {dim}")
        self.heads, self.attend = heads, attend
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, S, dim) in slot order. Returns (B, S, dim)."""
        # (B, S, 3 dim) -> 3 x (B, H, S, D)
        q, k, v = self.project_in(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.project_out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def _bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
