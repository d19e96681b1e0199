"""The tiles of a mask as GPU kernels read them: short lists of neighbours, and masks of one bit an element.

A row of 16 slots sees its tiles in groups of four, 64 slots that one matrix product takes at once. Most rows of a
SCAP have two or three groups, a joint's row hundreds: left whole, a few programs would still run when all others
have ended. So long rows are cut into parts, which come first, and whose results are joined at the end.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deformer_core.body.scap import TILE, Scap, Tiles

JOINED = 4
"""Tiles of a group: 16 x 64 scores. Joining rows too, to 64 x 64, would double the products to compute (12,304 slots:
19,520 tiles for 9,484, of which 8,217 hold a link) to halve what is read, from a second-level cache that holds it."""

GROUP = JOINED * TILE

LONG = 4
"""A row is cut where it is longer than so many average rows; where all are long there are programs enough."""

SHORT = 8
"""Groups up to which no row is cut."""


class TileList(nn.Module):
    """The tiles of each row of a mask. Its tables are buffers, and not in the state dict.

    n_parts: how many pieces are parts of cut rows.
    """

    pieces: Tensor
    """(W, 3) int32: a row of tiles, its first group, its last one + 1. The parts of cut rows first, row by row."""
    columns: Tensor
    """(G, 4) int32: the columns of tiles of each group, filled up with tiles that nobody sees."""
    bits: Tensor
    """(G, 16) int64: bit j of entry i is set where the group's row i sees its column j, of 64."""
    cuts: Tensor
    """(C, 3) int32: a cut row of tiles, its first part, its last one + 1."""

    def __init__(self, n_rows: int, tiles: Tiles) -> None:
        super().__init__()
        degrees = np.bincount(tiles.rows, minlength=n_rows)
        lengths = -(-degrees // JOINED)
        firsts = lengths.cumsum() - lengths
        place = np.arange(len(tiles.rows)) - np.repeat(degrees.cumsum() - degrees, degrees)
        group, member = firsts[tiles.rows] + place // JOINED, place % JOINED
        columns = np.zeros((lengths.sum(), JOINED), np.int32)
        columns[group, member] = tiles.columns
        bits = np.zeros((lengths.sum(), TILE, JOINED), "<u2")
        bits[group, :, member] = np.packbits(tiles.masks, axis=-1, bitorder="little").view("<u2")[..., 0]

        longest = max(SHORT, int(LONG * lengths.mean()))
        n_pieces = -(-lengths // longest)
        order = np.argsort(n_pieces == 1, kind="stable")  # cut rows first
        rows = np.repeat(order, n_pieces[order])
        piece = np.arange(len(rows)) - np.repeat(n_pieces[order].cumsum() - n_pieces[order], n_pieces[order])
        bounds = [firsts[rows] + lengths[rows] * (piece + end) // n_pieces[rows] for end in (0, 1)]
        cut = order[n_pieces[order] > 1]
        ends = n_pieces[cut].cumsum()
        self.n_parts = int(n_pieces[cut].sum())
        self._table("pieces", np.stack([rows, *bounds], 1).astype(np.int32))
        self._table("columns", columns)
        self._table("bits", bits.view("<i8")[..., 0])
        self._table("cuts", np.stack([cut, ends - n_pieces[cut], ends], 1).astype(np.int32))

    def _table(self, name: str, value: NDArray[np.integer]) -> None:
        self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def tables(self) -> list[Tensor]:
        return [self.pieces, self.columns, self.bits, self.cuts]


def tile_lists(scap: Scap) -> tuple[TileList, TileList]:
    """The tiles that each row of the mask sees; and those that see each column, for what flows back."""
    tiles, n_rows = scap.tiles, scap.n_slots // TILE
    order = np.lexsort((tiles.rows, tiles.columns))
    turned = Tiles(tiles.columns[order], tiles.rows[order], tiles.masks[order].transpose(0, 2, 1))
    return TileList(n_rows, tiles), TileList(n_rows, turned)
