"""The kernels of `triton_attention`. One program takes one piece of a row of tiles, and one head of one sample.

Results and their gradients are in memory (B, S, H, D); a plane is one head of one sample, in the order (B, H). DIM is
D, WIDTH the power of two that holds it. Sums are float32, exponents and logarithms binary: GPUs have these built in.
"""
# mypy: disable-error-code="no-untyped-def"
# Kernels take pointers and numbers, and of annotations only `tl.constexpr` means something to them.

from __future__ import annotations

import math

import triton
import triton.language as tl

from deformer_core.body.scap_tables import GROUP, JOINED, TILE

ROWS = tl.constexpr(TILE)
COLUMNS = tl.constexpr(GROUP)
TILES = tl.constexpr(JOINED)
LOG2_E = tl.constexpr(math.log2(math.e))
NOTHING = tl.constexpr(-1e30)
"""Below any score, and finite: the difference of two of them is no NaN."""


@triton.jit
def _piece(pieces):
    """This program's rows (16,), its first group and its last one + 1."""
    piece = pieces + tl.program_id(0) * 3
    return tl.load(piece) * ROWS + tl.arange(0, ROWS), tl.load(piece + 1), tl.load(piece + 2)


@triton.jit
def _start(n_heads, batch_stride, head_stride):
    """Where this program's head of its sample begins."""
    plane = tl.program_id(1)
    return (plane // n_heads).to(tl.int64) * batch_stride + (plane % n_heads) * head_stride


@triton.jit
def _group(group, columns, bits):
    """The slots (64,) of a group of tiles, and whether each row sees them (16, 64)."""
    lane = tl.arange(0, COLUMNS)
    slots = tl.load(columns + group * TILES + lane // ROWS) * ROWS + lane % ROWS
    words = tl.load(bits + group * ROWS + tl.arange(0, ROWS))
    return slots, ((words[:, None] >> lane[None, :].to(tl.int64)) & 1) != 0


@triton.jit
def _read(x, slots, stride, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """The vectors (N, WIDTH) of slots: DIM numbers and zeros."""
    lane = tl.arange(0, WIDTH)[None, :]
    return tl.load(x + slots[:, None] * stride + lane, mask=lane < DIM, other=0.0)


@triton.jit
def _write(x, parts, found, slots, start, stride, n_parts, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Store (16, WIDTH): the vectors of slots, or a part of them for `join`."""
    piece, plane = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, WIDTH)[None, :]
    if piece < n_parts:
        place = (plane.to(tl.int64) * n_parts + piece) * ROWS + tl.arange(0, ROWS)
        tl.store(parts + place[:, None] * DIM + lane, found, mask=lane < DIM)
    else:
        tl.store(x + start + slots[:, None] * stride + lane, found.to(x.dtype.element_ty), mask=lane < DIM)


@triton.jit
def forward(
    q, k, v, out, sums, parts, part_sums, pieces, columns, bits, n_slots, n_heads, n_parts,
    batch_stride, head_stride, slot_stride, SCALE: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`out`, and in `sums` the binary logarithm of each row's sum."""
    slots, first, last = _piece(pieces)
    start = _start(n_heads, batch_stride, head_stride)
    queries = _read(q + start, slots, slot_stride, DIM, WIDTH)
    top = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for group in range(first, last):
        seen_slots, seen = _group(group, columns, bits)
        keys = _read(k + start, seen_slots, slot_stride, DIM, WIDTH)
        values = _read(v + start, seen_slots, slot_stride, DIM, WIDTH)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (SCALE * LOG2_E)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(shares, 1)
        found = tl.dot(shares.to(values.dtype), values, found * fade[:, None], input_precision=PRECISION)
        top = higher
    total = tl.where(total > 0, total, 1.0)  # a part may hold nothing for some of its rows
    found = found / total[:, None]
    log_sum = top + tl.log2(total)
    piece, plane = tl.program_id(0), tl.program_id(1)
    if piece < n_parts:
        tl.store(part_sums + (plane * n_parts + piece) * ROWS + tl.arange(0, ROWS), log_sum)
    else:
        tl.store(sums + plane * n_slots + slots, log_sum)
    out_start = _start(n_heads, n_slots * n_heads * DIM, DIM)
    _write(out, parts, found, slots, out_start, n_heads * DIM, n_parts, DIM, WIDTH)


@triton.jit
def join(
    out, sums, parts, part_sums, cuts, n_slots, n_heads, n_parts,
    DIM: tl.constexpr, WIDTH: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Join the parts of a cut row: WEIGHTED by the sums of their softmax, or simply added."""
    plane = tl.program_id(1)
    slots, first, last = _piece(cuts)
    lane = tl.arange(0, WIDTH)[None, :]
    top = tl.full((ROWS,), NOTHING, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for part in range(first, last):
        place = (plane.to(tl.int64) * n_parts + part) * ROWS + tl.arange(0, ROWS)
        share = tl.load(parts + place[:, None] * DIM + lane, mask=lane < DIM, other=0.0)
        if WEIGHTED:
            log_sum = tl.load(part_sums + place)
            higher = tl.maximum(top, log_sum)
            fade, weight = tl.exp2(top - higher), tl.exp2(log_sum - higher)
            found = found * fade[:, None] + share * weight[:, None]
            total = total * fade + weight
            top = higher
        else:
            found += share
    if WEIGHTED:
        found = found / total[:, None]
        tl.store(sums + plane * n_slots + slots, top + tl.log2(total))
    start = _start(n_heads, n_slots * n_heads * DIM, DIM)
    tl.store(out + start + slots[:, None] * n_heads * DIM + lane, found.to(out.dtype.element_ty), mask=lane < DIM)


@triton.jit
def backward_rows(
    q, k, v, out, sums, d_out, d_q, deltas, parts, pieces, columns, bits, n_slots, n_heads, n_parts,
    batch_stride, head_stride, slot_stride, SCALE: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`d_q`, and in `deltas` each row's d_out . out."""
    slots, first, last = _piece(pieces)
    start = _start(n_heads, batch_stride, head_stride)
    out_start = _start(n_heads, n_slots * n_heads * DIM, DIM)
    queries = _read(q + start, slots, slot_stride, DIM, WIDTH)
    flow = _read(d_out + out_start, slots, n_heads * DIM, DIM, WIDTH)
    results = _read(out + out_start, slots, n_heads * DIM, DIM, WIDTH)
    delta = tl.sum(flow.to(tl.float32) * results.to(tl.float32), 1)
    line = tl.program_id(1) * n_slots + slots
    tl.store(deltas + line, delta)  # all parts of a row store the same
    log_sum = tl.load(sums + line)
    found = tl.zeros((ROWS, WIDTH), tl.float32)
    for group in range(first, last):
        seen_slots, seen = _group(group, columns, bits)
        keys = _read(k + start, seen_slots, slot_stride, DIM, WIDTH)
        values = _read(v + start, seen_slots, slot_stride, DIM, WIDTH)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * (SCALE * LOG2_E)
        shares = tl.exp2(tl.where(seen, scores - log_sum[:, None], float("-inf")))
        d_shares = tl.dot(flow, tl.trans(values), input_precision=PRECISION)
        d_scores = shares * (d_shares - delta[:, None])
        found = tl.dot(d_scores.to(keys.dtype), keys, found, input_precision=PRECISION)
    _write(d_q, parts, found * SCALE, slots, out_start, n_heads * DIM, n_parts, DIM, WIDTH)


@triton.jit
def backward_columns(
    q, k, v, sums, d_out, deltas, d_k, d_v, k_parts, v_parts, pieces, columns, bits, n_slots, n_heads, n_parts,
    batch_stride, head_stride, slot_stride, SCALE: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`d_k` and `d_v`: a program's "rows" are columns of the mask, and what they see are the rows that see them."""
    slots, first, last = _piece(pieces)
    start = _start(n_heads, batch_stride, head_stride)
    out_start = _start(n_heads, n_slots * n_heads * DIM, DIM)
    line = tl.program_id(1) * n_slots
    keys = _read(k + start, slots, slot_stride, DIM, WIDTH)
    values = _read(v + start, slots, slot_stride, DIM, WIDTH)
    found_k = tl.zeros((ROWS, WIDTH), tl.float32)
    found_v = tl.zeros((ROWS, WIDTH), tl.float32)
    for group in range(first, last):
        seeing_slots, seen = _group(group, columns, bits)
        queries = _read(q + start, seeing_slots, slot_stride, DIM, WIDTH)
        flow = _read(d_out + out_start, seeing_slots, n_heads * DIM, DIM, WIDTH)
        log_sum = tl.load(sums + line + seeing_slots)
        delta = tl.load(deltas + line + seeing_slots)
        scores = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * (SCALE * LOG2_E)
        shares = tl.exp2(tl.where(seen, scores - log_sum[None, :], float("-inf")))
        found_v = tl.dot(shares.to(flow.dtype), flow, found_v, input_precision=PRECISION)
        d_shares = tl.dot(values, tl.trans(flow), input_precision=PRECISION)
        d_scores = shares * (d_shares - delta[None, :])
        found_k = tl.dot(d_scores.to(queries.dtype), queries, found_k, input_precision=PRECISION)
    _write(d_k, k_parts, found_k * SCALE, slots, out_start, n_heads * DIM, n_parts, DIM, WIDTH)
    _write(d_v, v_parts, found_v, slots, out_start, n_heads * DIM, n_parts, DIM, WIDTH)
