import numpy as np
import pytest

from deformer_core.body.scap import TILE, Scap, cached_scap
from deformer_core.body.topology import BodyTopology
from deformer_core.nn import tile_lists as lists
from deformer_core.nn.sparse_attention import BodySparseAttention
from tests.nn.strips import strip


def mask_of(tiles: lists.TileList, n_slots: int) -> np.ndarray:
    """The mask, element by element; each group must be in one piece, and each part in one cut."""
    mask = np.zeros((n_slots, n_slots), bool)
    for row, first, last in tiles.pieces.numpy():
        for group in range(first, last):
            for i, word in enumerate(tiles.bits[group].tolist()):
                for j in range(lists.GROUP):
                    if word >> j & 1:
                        place = row * TILE + i, int(tiles.columns[group, j // TILE]) * TILE + j % TILE
                        assert not mask[place]
                        mask[place] = True
    return mask


@pytest.mark.parametrize("short", [1, 2, 8])
def test_lists_hold_the_mask_and_its_transpose(
    short: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "LONG", 1)
    monkeypatch.setattr(lists, "SHORT", short)
    whole = strip(rng, 200)
    # Without symmetry, and with rows that see only themselves.
    kept = (rng.random(len(whole.indices)) < 0.3) | (whole.indices == whole.row_indices)
    indptr = np.concatenate([[0], np.bincount(whole.row_indices[kept], minlength=whole.n_slots).cumsum()])
    scap = Scap(whole.n_joints, whole.n_registers, whole.n_vertices, whole.order, indptr, whole.indices[kept])
    for tiles, mask in zip(lists.tile_lists(scap), (scap.dense_mask(), scap.dense_mask().T)):
        np.testing.assert_array_equal(mask_of(tiles, scap.n_slots), mask)
        pieces = tiles.pieces.numpy()
        parts = [row for row, first, last in tiles.cuts.numpy() for _ in range(first, last)]
        np.testing.assert_array_equal(pieces[: tiles.n_parts, 0], parts)
        assert sorted({*parts, *pieces[tiles.n_parts :, 0]}) == list(range(scap.n_slots // TILE))
        assert len(pieces) == tiles.n_parts + scap.n_slots // TILE - len(tiles.cuts)
        assert (tiles.n_parts > 0) == (short < 8)


def test_no_piece_is_long_on_a_body(body: BodyTopology) -> None:
    scap = cached_scap(body, "full")
    for tiles in lists.tile_lists(scap):
        lengths = np.diff(tiles.pieces.numpy()[:, 1:]).ravel()
        assert tiles.n_parts and lengths.max() <= lists.LONG * len(tiles.columns) / (scap.n_slots / TILE)
        assert sum(table.nbytes for table in tiles.tables()) < 400_000


def test_lists_are_no_weights(rng: np.random.Generator) -> None:
    names = {"project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias"}
    assert set(BodySparseAttention(8, 2, strip(rng, 40), "triton").state_dict()) == names
