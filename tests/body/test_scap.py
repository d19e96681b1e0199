import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from deformer_core.body.scap import TILE, Scap, build_scap, cached_scap, joint_links
from deformer_core.body.topology import LEVELS, BodyTopology


def tube(rings: int, segments: int) -> np.ndarray:
    """(F, 3) faces of an open tube of rings x segments vertices."""
    ring, segment = np.meshgrid(np.arange(rings - 1), np.arange(segments), indexing="ij")
    a, b = ring * segments + segment, ring * segments + (segment + 1) % segments
    quads = np.stack([a, b, b + segments, a + segments], -1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def random_links(rng: np.random.Generator, n_joints: int, n_vertices: int) -> csr_matrix:
    return csr_matrix(rng.random((n_joints, n_vertices)) < 0.2)


def of_body(body: BodyTopology, level: str, rings: int = 2) -> Scap:
    mesh = body.levels[level]
    return build_scap(mesh.faces, len(mesh.vertices), joint_links(body, level), rings)


def as_matrix(scap: Scap) -> csr_matrix:
    return csr_matrix(
        (np.ones(len(scap.indices), bool), scap.indices, scap.indptr), shape=(scap.n_slots,) * 2
    )


@pytest.fixture(scope="module")
def scaps(body: BodyTopology) -> dict[str, Scap]:
    return {level: of_body(body, level) for level in LEVELS}


@pytest.mark.parametrize("level", LEVELS)
def test_symmetric_with_self_in_whole_tiles(scaps: dict[str, Scap], level: str) -> None:
    scap = scaps[level]
    mask = as_matrix(scap)
    assert scap.n_slots % TILE == 0 and (scap.n_joints + scap.n_registers) % TILE == 0
    assert (mask != mask.T).nnz == 0
    assert mask.diagonal().all()
    np.testing.assert_array_equal(scap.order[scap.slots], np.arange(scap.n_tokens))
    padding = np.setdiff1d(np.arange(scap.n_slots), scap.slots)
    assert (np.diff(scap.indptr)[padding] == 1).all()


def test_mask_is_rings_joints_and_registers(body: BodyTopology) -> None:
    """Against a dense construction by matrix powers."""
    level, n_joints = body.levels["coarse"], len(body.joint_names)
    n_vertices = len(level.vertices)
    near = np.eye(n_vertices, dtype=int)
    near[level.edges[:, 0], level.edges[:, 1]] = near[level.edges[:, 1], level.edges[:, 0]] = 1
    scap = of_body(body, "coarse", rings=3)
    head = n_joints + scap.n_registers
    expected = np.zeros((scap.n_tokens, scap.n_tokens), bool)
    expected[:head, :head] = True
    expected[head:, head:] = np.linalg.matrix_power(near, 3) > 0
    links = joint_links(body, "coarse").toarray()
    assert links.any(0).all()  # each vertex has a joint
    assert links[level.joint_regressor.dense() != 0].all()
    expected[:n_joints, head:] = links
    expected[head:, :n_joints] = links.T
    np.testing.assert_array_equal(scap.token_pairs(), np.argwhere(expected))


def test_independent_of_vertex_order(rng: np.random.Generator) -> None:
    faces, n_vertices = tube(13, 9), 13 * 9
    links = random_links(rng, 5, n_vertices)
    renamed = rng.permutation(n_vertices)  # old vertex v is new vertex renamed[v]
    scap = build_scap(faces, n_vertices, links)
    other = build_scap(renamed[faces], n_vertices, links[:, np.argsort(renamed)])
    head = scap.n_joints + scap.n_registers
    token = np.concatenate([np.arange(head), head + renamed])
    pairs = token[scap.token_pairs()]
    np.testing.assert_array_equal(np.unique(pairs, axis=0), other.token_pairs())


@pytest.mark.parametrize("rings", [1, 2, 3])
def test_tiles_and_buckets_cover_exactly_the_mask(body: BodyTopology, rings: int) -> None:
    scap = of_body(body, "coarse", rings)
    mask = scap.dense_mask()
    np.testing.assert_array_equal(mask, as_matrix(scap).toarray())
    tiles = scap.tiles
    assert tiles.masks.any((1, 2)).all()
    n = scap.n_slots // TILE
    built = np.zeros((n, n, TILE, TILE), bool)
    built[tiles.rows, tiles.columns] = tiles.masks
    np.testing.assert_array_equal(built.transpose(0, 2, 1, 3).reshape(mask.shape), mask)

    counted = np.zeros(mask.shape, int)
    seen = []
    for bucket in scap.buckets():
        seen.extend(bucket.rows)
        for row, columns, bucket_mask in zip(bucket.rows, bucket.columns, bucket.masks):
            keys = (columns[:, None] * TILE + np.arange(TILE)).ravel()
            np.add.at(counted[row * TILE : (row + 1) * TILE], (slice(None), keys), bucket_mask)
    assert sorted(seen) == list(range(n))
    np.testing.assert_array_equal(counted, mask)  # every link once, whatever the padding


def test_bisection_needs_fewer_tiles_than_the_mesh_as_it_comes(scaps: dict[str, Scap]) -> None:
    for level, scap in scaps.items():
        pairs = scap.token_pairs()
        native = len(np.unique(pairs // TILE, axis=0))
        print(level, "tiles:", len(scap.tiles.rows), "as it comes:", native)
        assert len(scap.tiles.rows) < 0.8 * native


def test_order_is_deterministic_and_takes_loose_parts(rng: np.random.Generator) -> None:
    """Two tubes, a lone triangle and a vertex without faces."""
    faces = np.concatenate([tube(12, 8), 96 + tube(6, 5), [[126, 127, 128]]])
    links = random_links(rng, 3, 130)
    first, second = build_scap(faces, 130, links), build_scap(faces, 130, links)
    np.testing.assert_array_equal(first.order, second.order)
    assert sorted(first.order[first.slots]) == list(range(first.n_tokens))


def test_unrestricted_links_all_tokens_but_padding(rng: np.random.Generator) -> None:
    scap = build_scap(tube(5, 7), 35, random_links(rng, 4, 35)).unrestricted()
    assert len(scap.token_pairs()) == scap.n_tokens**2
    assert len(scap.indices) == scap.n_tokens**2 + scap.n_slots - scap.n_tokens


def test_cache_round_trip(body: BodyTopology, tmp_path: Path) -> None:
    built = cached_scap(body, "coarse", cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    loaded = cached_scap(body, "coarse", cache_dir=tmp_path)
    for name in ("order", "indptr", "indices", "n_joints", "n_registers", "n_vertices"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(built, name))
    cached_scap(body, "coarse", rings=1, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign"])
def test_damaged_cache_is_rebuilt_and_said_once(body: BodyTopology, tmp_path: Path, damage: str) -> None:
    built = cached_scap(body, "coarse", cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "foreign":
        cached_scap(body, "coarse", rings=1, cache_dir=tmp_path / "other")
        content = next((tmp_path / "other").iterdir()).read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "garbage": b"PK" + content[::-1], "empty": b""}
    path.write_bytes(damaged.get(damage, content))
    with pytest.warns(UserWarning, match=f"{path.name}.*built again") as record:
        rebuilt = cached_scap(body, "coarse", cache_dir=tmp_path)
    assert len(record) == 1
    np.testing.assert_array_equal(rebuilt.token_pairs(), built.token_pairs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached_scap(body, "coarse", cache_dir=tmp_path)


def test_cache_folder_from_the_environment(
    body: BodyTopology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "deep" / "er"))
    cached_scap(body, "coarse")
    assert len(list((tmp_path / "deep" / "er").iterdir())) == 1


def test_unwritable_cache_does_no_harm(body: BodyTopology, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    assert cached_scap(body, "coarse", cache_dir=tmp_path / "file" / "below").n_vertices == 615
    (tmp_path / "full").mkdir(mode=0o500)
    assert cached_scap(body, "coarse", cache_dir=tmp_path / "full").n_vertices == 615
