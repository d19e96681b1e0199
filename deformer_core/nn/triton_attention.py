"""Body sparse self-attention on a GPU by kernels of our own: softmax over a row's tiles as they come.

Nothing of size S x S is made or kept. Backward computes the scores again from the logarithms of the softmax's sums; dQ
goes by rows, dK and dV by columns, so that nothing is added atomically and equal inputs give equal bits.

Imported only where it runs: it needs Triton, and a GPU (CUDA, compute capability 8.0 or more) or Triton's interpreter.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from deformer_core.body.scap_tables import TILE
from deformer_core.errors import InputError
from deformer_core.nn import triton_attention_kernels as kernels
from deformer_core.nn.tile_lists import TileList

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

WARPS = {2: 2, 4: 4}
"""Of a program, by the bytes of a number: the fewest with which heads of 64 stay in registers."""


def attend_tiles(q: Tensor, k: Tensor, v: Tensor, rows: TileList, columns: TileList) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, the bias being 0 where the lists' tiles have a link and -inf elsewhere.

    q, k, v: (B, H, S, D), all of one of `DTYPES`. Products of float32 are exact to about 2^-21, or tf32 where torch's
    are, see `torch.set_float32_matmul_precision`. rows, columns: of `Tables`. Returns (B, H, S, D), in memory
    (B, S, H, D).
    """
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise InputError(f"attention by Triton takes float32, float16 or bfloat16, not {q.dtype}, {k.dtype}, {v.dtype}")
    return _attend(q, k, v, rows.tables(), rows.n_parts, columns.tables(), columns.n_parts)[0]


@torch.library.custom_op("deformer::attend_tiles", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, rows: list[Tensor], row_parts: int, columns: list[Tensor], column_parts: int
) -> tuple[Tensor, Tensor]:
    """The result, and the binary logarithms (B * H, S) of its softmax's sums. `columns` are for the way back."""
    *lists, cuts = rows
    q, k, v = _alike(q, k, v)
    out, sums = _results(q)
    parts, part_sums = _parts(q, row_parts), q.new_empty(len(sums), row_parts, TILE, dtype=torch.float32)
    sizes, grid = _sizes(q, row_parts), (len(lists[0]), len(sums))
    with torch.cuda.device_of(q):
        kernels.forward[grid](q, k, v, out, sums, parts, part_sums, *lists, **_reading(q), **sizes)
        if row_parts:
            kernels.join[len(cuts), len(sums)](out, sums, parts, part_sums, cuts, WEIGHTED=True, **sizes)
    return out.transpose(1, 2), sums


@torch.library.custom_op("deformer::attend_tiles_backward", mutates_args=())
def _attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: list[Tensor],
    row_parts: int,
    columns: list[Tensor],
    column_parts: int,
    out: Tensor,
    sums: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    q, k, v = _alike(q, k, v)
    out, d_out = (x.transpose(1, 2).contiguous() for x in (out, d_out))
    d_q, d_k, d_v = (torch.empty_like(out) for _ in range(3))
    deltas, reading = torch.empty_like(sums), _reading(q)
    with torch.cuda.device_of(q):
        *lists, cuts = rows
        parts, sizes, grid = _parts(q, row_parts), _sizes(q, row_parts), (len(lists[0]), len(sums))
        kernels.backward_rows[grid](q, k, v, out, sums, d_out, d_q, deltas, parts, *lists, **reading, **sizes)
        if row_parts:
            kernels.join[len(cuts), len(sums)](d_q, sums, parts, sums, cuts, WEIGHTED=False, **sizes)
        *lists, cuts = columns
        k_parts, v_parts, sizes = _parts(q, column_parts), _parts(q, column_parts), _sizes(q, column_parts)
        written = (d_k, d_v, k_parts, v_parts)
        grid = (len(lists[0]), len(sums))
        kernels.backward_columns[grid](q, k, v, sums, d_out, deltas, *written, *lists, **reading, **sizes)
        if column_parts:
            for found, parts in ((d_k, k_parts), (d_v, v_parts)):
                kernels.join[len(cuts), len(sums)](found, sums, parts, sums, cuts, WEIGHTED=False, **sizes)
    return d_q.transpose(1, 2), d_k.transpose(1, 2), d_v.transpose(1, 2)


@_attend.register_fake
def _(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    out, sums = _results(q)
    return out.transpose(1, 2), sums


@_attend_backward.register_fake
def _(q: Tensor, *_: object) -> tuple[Tensor, ...]:
    return tuple(_results(q)[0].transpose(1, 2) for _ in range(3))


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def]
    q, k, v, rows, ctx.row_parts, columns, ctx.column_parts = inputs
    ctx.save_for_backward(q, k, v, *output, *rows, *columns)


def _flow_back(ctx, d_out: Tensor, _: Tensor):  # type: ignore[no-untyped-def]
    q, k, v, out, sums, *tables = ctx.saved_tensors
    rows, columns = tables[:4], tables[4:]
    gradients = _attend_backward(q, k, v, rows, ctx.row_parts, columns, ctx.column_parts, out, sums, d_out)
    return *gradients, [None] * 4, None, [None] * 4, None


_attend.register_autograd(_flow_back, setup_context=_keep)


def _alike(*tensors: Tensor) -> tuple[Tensor, ...]:
    """With equal strides, the last of them 1: three parts of one projection stay views."""
    strides = tensors[0].stride()
    if strides[3] == 1 and all(x.stride() == strides for x in tensors):
        return tensors
    return tuple(x.contiguous() for x in tensors)


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    """Room for a result (B, S, H, D) and for the logarithms (B * H, S)."""
    batch, heads, slots, dim = q.shape
    return q.new_empty(batch, slots, heads, dim), q.new_empty(batch * heads, slots, dtype=torch.float32)


def _parts(q: Tensor, n_parts: int) -> Tensor:
    """Room for the parts of cut rows."""
    batch, heads, _, dim = q.shape
    return q.new_empty(batch * heads, n_parts, TILE, dim, dtype=torch.float32)


def _sizes(q: Tensor, n_parts: int) -> dict[str, int]:
    """What all kernels are told, and how many warps run one program."""
    _, heads, slots, dim = q.shape
    sizes = {"n_slots": slots, "n_heads": heads, "n_parts": n_parts, "DIM": dim}
    return {**sizes, "WIDTH": max(16, triton.next_power_of_2(dim)), "num_warps": WARPS[q.element_size()]}


def _reading(q: Tensor) -> dict[str, object]:
    """Where q, k and v lie, and how they are multiplied."""
    strides = dict(zip(("batch_stride", "head_stride", "slot_stride"), q.stride()))
    # Three products of tf32 for one of float32: without tensor cores, gradients of wide heads spill from registers.
    precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {**strides, "SCALE": 1 / math.sqrt(q.shape[-1]), "PRECISION": precision}
