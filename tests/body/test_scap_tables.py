"""Tables against the masks that they are made of, element by element."""

import numpy as np
import pytest

from deformer_core.body import scap_tables
from deformer_core.body.scap import Scap, build_scap, joint_links
from deformer_core.body.scap_cache import cached_scap
from deformer_core.body.scap_tables import GROUP, GROWTH, TILE, Groups, find_tiles
from deformer_core.body.topology import BodyTopology
from tests.nn.strips import strip


@pytest.mark.parametrize("rings", [1, 2, 3])
def test_tiles_and_buckets_cover_exactly_the_mask(body: BodyTopology, rings: int) -> None:
    mesh = body.levels["coarse"]
    scap = build_scap(mesh.faces, len(mesh.vertices), joint_links(body, "coarse"), rings)
    mask = scap.dense_mask()
    tiles = find_tiles(scap.row_indices, scap.indices, scap.n_slots)
    assert tiles.masks.any((1, 2)).all()
    n = scap.n_slots // TILE
    built = np.zeros((n, n, TILE, TILE), bool)
    built[tiles.rows, tiles.columns] = tiles.masks
    np.testing.assert_array_equal(built.transpose(0, 2, 1, 3).reshape(mask.shape), mask)

    counted = np.zeros(mask.shape, int)
    seen = []
    for bucket in scap.tables.buckets:
        seen.extend(bucket.rows)
        degrees = np.array([len(np.unique(columns)) for columns in bucket.columns])
        assert degrees.max() == bucket.columns.shape[1] <= GROWTH * degrees.min()
        for row, columns, bucket_mask in zip(*bucket):
            keys = (columns[:, None] * TILE + np.arange(TILE)).ravel()
            np.add.at(counted[row * TILE : (row + 1) * TILE], (slice(None), keys), bucket_mask)
    assert sorted(seen) == list(range(n))
    np.testing.assert_array_equal(counted, mask)  # every link once, whatever the padding


def mask_of(groups: Groups, n_slots: int) -> np.ndarray:
    """The mask, element by element; each group must be in one piece, and each part in one cut."""
    mask = np.zeros((n_slots, n_slots), bool)
    for row, first, last in groups.pieces:
        for group in range(first, last):
            for i, word in enumerate(groups.bits[group].tolist()):
                for j in range(GROUP):
                    if word >> j & 1:
                        place = row * TILE + i, int(groups.columns[group, j // TILE]) * TILE + j % TILE
                        assert not mask[place]
                        mask[place] = True
    return mask


@pytest.mark.parametrize("short", [1, 2, 8])
def test_groups_hold_the_mask_and_its_transpose(
    short: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scap_tables, "LONG", 1)
    monkeypatch.setattr(scap_tables, "SHORT", short)
    whole = strip(rng, 200)
    # Without symmetry, and with rows that see only themselves.
    kept = (rng.random(len(whole.indices)) < 0.3) | (whole.indices == whole.row_indices)
    indptr = np.concatenate([[0], np.bincount(whole.row_indices[kept], minlength=whole.n_slots).cumsum()])
    scap = Scap(whole.n_joints, whole.n_registers, whole.n_vertices, whole.order, indptr, whole.indices[kept])
    tables, mask = scap.tables, scap.dense_mask()
    for groups, expected in ((tables.rows, mask), (tables.columns, mask.T)):
        np.testing.assert_array_equal(mask_of(groups, scap.n_slots), expected)
        parts = [row for row, first, last in groups.cuts for _ in range(first, last)]
        np.testing.assert_array_equal(groups.pieces[: groups.n_parts, 0], parts)
        assert sorted({*parts, *groups.pieces[groups.n_parts :, 0]}) == list(range(scap.n_slots // TILE))
        assert len(groups.pieces) == groups.n_parts + scap.n_slots // TILE - len(groups.cuts)
        assert (groups.n_parts > 0) == (short < 8)


def test_no_piece_is_long_on_a_body(body: BodyTopology) -> None:
    scap = cached_scap(body, "full")
    for groups in (scap.tables.rows, scap.tables.columns):
        lengths = np.diff(groups.pieces[:, 1:]).ravel()
        assert groups.n_parts and lengths.max() <= scap_tables.LONG * len(groups.columns) / (scap.n_slots / TILE)
        assert sum(table.nbytes for table in vars(groups).values()) < 400_000
