"""The tables by which attention over a mask is executed: its 16x16 tiles that hold a link, laid out in two ways.

- `Buckets`, for a CPU: rows of tiles that have about equally many, so that each bucket is a few products of matrices.
- `Groups`, for GPU kernels: short lists of neighbours. A row of 16 slots sees its tiles in groups of four, 64 slots
  that one matrix product takes at once. Most rows of a SCAP have two or three groups, a joint's row hundreds: left
  whole, a few programs would still run when all others have ended. So long rows are cut into parts, which come first,
  and whose results are joined at the end.

Masks are kept as bits. `scap_cache` keeps all this in the SCAP's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

TILE = 16

GROWTH = 1.3
"""The most tiles that a row of a bucket has are at most so many times the fewest."""

JOINED = 4
"""Tiles of a group: 16 x 64 scores. Joining rows too, to 64 x 64, would double the products to compute (12,304 slots:
19,520 tiles for 9,484, of which 8,217 hold a link) to halve what is read, from a second-level cache that holds it."""

GROUP = JOINED * TILE

LONG = 4
"""A row is cut where it is longer than so many average rows; where all are long there are programs enough."""

SHORT = 8
"""Groups up to which no row is cut."""


class Tiles(NamedTuple):
    """The non-empty tiles of a mask, ordered by row, then by column."""

    rows: IntArray
    """(T,)"""
    columns: IntArray
    """(T,)"""
    masks: NDArray[np.bool_]
    """(T, 16, 16), none of them empty."""


class Bucket(NamedTuple):
    """Rows of tiles with about equally many tiles, padded to the same number."""

    rows: IntArray
    """(R,)"""
    columns: IntArray
    """(R, K); padding repeats a column of the row."""
    masks: NDArray[np.bool_]
    """(R, 16, K * 16), all False in the padding."""


@dataclass(frozen=True)
class Buckets:
    """All buckets of a mask, one after the other; iterate for each as a `Bucket`."""

    sizes: IntArray
    """(N, 2): R and K of each bucket."""
    rows: IntArray
    """(all R,)"""
    columns: IntArray
    """(all R * K,)"""
    bits: NDArray[np.uint16]
    """(all R * 16 * K,): bit j is set where the row of slots sees column j of the tile."""

    def __iter__(self) -> Iterator[Bucket]:
        row = tile = 0
        for n_rows, width in self.sizes.tolist():
            end = tile + n_rows * width
            columns = self.columns[tile:end].reshape(n_rows, width)
            masks = np.unpackbits(self.bits[tile * TILE : end * TILE].view(np.uint8), bitorder="little").view(bool)
            yield Bucket(self.rows[row : row + n_rows], columns, masks.reshape(n_rows, TILE, width * TILE))
            row, tile = row + n_rows, end


@dataclass(frozen=True)
class Groups:
    """The tiles of each row of a mask in groups, and the rows in pieces."""

    pieces: NDArray[np.int32]
    """(W, 3): a row of tiles, its first group, its last one + 1. The parts of cut rows first, row by row."""
    columns: NDArray[np.int32]
    """(G, 4): the columns of tiles of each group, filled up with tiles that nobody sees."""
    bits: IntArray
    """(G, 16): bit j of entry i is set where the group's row i sees its column j, of 64."""
    cuts: NDArray[np.int32]
    """(C, 3): a cut row of tiles, its first part, its last one + 1."""

    @property
    def n_parts(self) -> int:
        """How many pieces are parts of cut rows."""
        return int(self.cuts[:, 2].max(initial=0))


@dataclass(frozen=True)
class Tables:
    """buckets, rows: the tiles that each row of the mask sees. columns: those that see each column, for what flows
    back."""

    buckets: Buckets
    rows: Groups
    columns: Groups


def make_tables(rows: IntArray, columns: IntArray, n_slots: int) -> Tables:
    """The tables of a mask over `n_slots` slots, a multiple of 16. rows, columns: (nnz,) of its links, in any order."""
    tiles, n_rows = find_tiles(rows, columns, n_slots), n_slots // TILE
    order = np.lexsort((tiles.rows, tiles.columns))
    turned = Tiles(tiles.columns[order], tiles.rows[order], tiles.masks[order].transpose(0, 2, 1))
    return Tables(_buckets(tiles, n_rows), _groups(tiles, n_rows), _groups(turned, n_rows))


def find_tiles(rows: IntArray, columns: IntArray, n_slots: int) -> Tiles:
    """The tiles of a mask, see `make_tables`."""
    n_tiles = n_slots // TILE
    unique, inverse = np.unique(rows // TILE * n_tiles + columns // TILE, return_inverse=True)
    masks = np.zeros((len(unique), TILE, TILE), bool)
    masks[inverse, rows % TILE, columns % TILE] = True
    return Tiles(unique // n_tiles, unique % n_tiles, masks)


def _buckets(tiles: Tiles, n_rows: int) -> Buckets:
    starts = np.searchsorted(tiles.rows, np.arange(n_rows + 1))
    degrees = np.diff(starts)
    bits = _bits(tiles.masks)
    parts: list[tuple[NDArray, ...]] = []
    remaining = np.argsort(degrees, kind="stable")
    while len(remaining):
        limit = int(degrees[remaining[0]] * GROWTH)
        rows = np.sort(remaining[degrees[remaining] <= limit])
        remaining = remaining[degrees[remaining] > limit]
        place = np.arange(degrees[rows].max())[None]
        valid = place < degrees[rows][:, None]
        chosen = starts[rows][:, None] + np.where(valid, place, 0)  # (R, K)
        seen = np.where(valid[..., None], bits[chosen], 0).transpose(0, 2, 1)
        parts.append((np.array(chosen.shape), rows, tiles.columns[chosen].ravel(), seen.astype("<u2").ravel()))
    sizes, *flat = zip(*parts)
    return Buckets(np.stack(sizes), *(np.concatenate(arrays) for arrays in flat))


def _groups(tiles: Tiles, n_rows: int) -> Groups:
    degrees = np.bincount(tiles.rows, minlength=n_rows)
    lengths = -(-degrees // JOINED)
    firsts = lengths.cumsum() - lengths
    place = np.arange(len(tiles.rows)) - np.repeat(degrees.cumsum() - degrees, degrees)
    group, member = firsts[tiles.rows] + place // JOINED, place % JOINED
    columns = np.zeros((lengths.sum(), JOINED), np.int32)
    columns[group, member] = tiles.columns
    bits = np.zeros((lengths.sum(), TILE, JOINED), "<u2")
    bits[group, :, member] = _bits(tiles.masks)

    longest = max(SHORT, int(LONG * lengths.mean()))
    n_pieces = -(-lengths // longest)
    order = np.argsort(n_pieces == 1, kind="stable")  # cut rows first
    rows = np.repeat(order, n_pieces[order])
    piece = np.arange(len(rows)) - np.repeat(n_pieces[order].cumsum() - n_pieces[order], n_pieces[order])
    bounds = [firsts[rows] + lengths[rows] * (piece + end) // n_pieces[rows] for end in (0, 1)]
    cut = order[n_pieces[order] > 1]
    ends = n_pieces[cut].cumsum()
    return Groups(
        pieces=np.stack([rows, *bounds], 1).astype(np.int32),
        columns=columns,
        bits=bits.view("<i8")[..., 0],
        cuts=np.stack([cut, ends - n_pieces[cut], ends], 1).astype(np.int32),
    )


def _bits(masks: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """(T, 16, 16) to (T, 16)."""
    return np.packbits(masks, axis=-1, bitorder="little").view("<u2")[..., 0]
