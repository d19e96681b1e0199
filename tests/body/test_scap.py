import numpy as np
import pytest
from scipy.sparse import csr_matrix

from deformer_core.body.scap import Scap, build_scap, joint_links
from deformer_core.body.scap_tables import TILE, find_tiles
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


def test_bisection_needs_fewer_tiles_than_the_mesh_as_it_comes(scaps: dict[str, Scap]) -> None:
    for level, scap in scaps.items():
        pairs = scap.token_pairs()
        native = len(np.unique(pairs // TILE, axis=0))
        tiles = len(find_tiles(scap.row_indices, scap.indices, scap.n_slots).rows)
        print(level, "tiles:", tiles, "as it comes:", native)
        assert tiles < 0.8 * native


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
