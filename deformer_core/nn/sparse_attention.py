"""Body sparse self-attention (BSSA): attention between the tokens that a SCAP links.

The SCAP's element mask defines the result. Two executions give it, equal to rounding:

- `dense_masked`: everything against everything with the mask as a bias; the simplest graph to export, and
  good up to about a thousand tokens;
- `tile_gather`: each row of 16x16 tiles against its own non-empty tiles only, rows of like degree together;
  memory and time grow with the mesh, not with its square.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.body.scap import TILE, Scap
from deformer_core.errors import InputError

DENSE_LIMIT = 1024
"""Tokens up to which "auto" takes the dense execution."""

TILES_AT_ONCE = 256
"""Tiles gathered by one step of `tile_gather`: few enough to stay in a processor's cache (twice as fast as all)."""

BACKENDS = ("auto", "dense", "tiles")


class TileBucket(NamedTuple):
    """Some rows of tiles with the same number K of columns, see `deformer_core.body.scap.Bucket`."""

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


class BodySparseAttention(nn.Module):
    """Multi-head self-attention over the slots of a SCAP.

    The mask is a constant of the body: it is not in the state dict. `backend` is one of `BACKENDS`.
    """

    bias: Tensor

    def __init__(self, dim: int, heads: int, scap: Scap, backend: str = "auto") -> None:
        super().__init__()
        if dim % heads:
            raise InputError(f"attention of width {dim} cannot have {heads} heads: choose a divisor of {dim}")
        if backend not in BACKENDS:
            raise InputError(f"unknown attention '{backend}': use one of {', '.join(BACKENDS)}")
        self.heads = heads
        self.dense = scap.n_slots <= DENSE_LIMIT if backend == "auto" else backend == "dense"
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)
        if self.dense:
            self.register_buffer("bias", _bias(torch.from_numpy(scap.dense_mask())), persistent=False)
            return
        self.n_buckets = 0
        for bucket in scap.buckets():
            n_rows = max(1, TILES_AT_ONCE // bucket.columns.shape[1])
            whole = (bucket.rows, bucket.columns, bucket.masks)
            for rows, columns, masks in zip(*(torch.from_numpy(array).split(n_rows) for array in whole)):
                for name, value in zip(TileBucket._fields, (rows, columns, _bias(masks))):
                    self.register_buffer(f"bucket{self.n_buckets}_{name}", value, persistent=False)
                self.n_buckets += 1

    @property
    def buckets(self) -> list[TileBucket]:
        names = TileBucket._fields
        return [
            TileBucket(*(getattr(self, f"bucket{i}_{name}") for name in names)) for i in range(self.n_buckets)
        ]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, S, dim) in slot order. Returns (B, S, dim)."""
        # (B, S, 3 dim) -> 3 x (B, H, S, D)
        q, k, v = self.project_in(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = dense_masked(q, k, v, self.bias) if self.dense else tile_gather(q, k, v, self.buckets)
        return self.project_out(attended.transpose(1, 2).flatten(2))


def _bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
