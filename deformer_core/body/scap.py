"""SCAP, the sparse connectivity attention pattern: which tokens of the body may attend to which.

The tokens are the joints, a few registers and the vertices of one level. Linked are

- vertices within `rings` edges of each other on the mesh (k-ring);
- each joint with the vertices it moves (their strongest bone is nearest to that joint) or is regressed from;
- the joints among themselves;
- registers with joints and registers. Registers are learned tokens without a place on the body that fill the
  joints' last tile; they are the joints' scratch memory, and reach every vertex through a joint in two layers
  without filling a row of tiles of the whole mask.

This element mask *is* the attention; the 16x16 tiles (`scap_tables`) are only how it may be executed. To make few
tiles hold many links, tokens are laid out in slots by recursive spectral bisection of the mesh, cut at multiples
of 16. Building takes seconds, so a body's is kept in a file, with its tables (`scap_cache`).
The paper names SCAP and its tiles; rings, registers and the ordering are our choices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.scap_tables import TILE, IntArray, Tables, make_tables
from deformer_core.body.topology import BodyTopology, Level

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_DENSE_LIMIT = 256
"""Below this many vertices a dense eigendecomposition is faster than a sparse one."""


@dataclass(frozen=True)
class Scap:
    """A mask over S slots (a multiple of 16) that hold T tokens: joints, then registers, then vertices."""

    n_joints: int
    n_registers: int
    n_vertices: int
    order: IntArray
    """(S,) the token in each slot. Padding slots repeat token 0; they see themselves and nobody sees them."""
    indptr: IntArray
    """(S + 1,) rows of the mask, by slot, in compressed sparse row form."""
    indices: IntArray
    """(nnz,) slots attended to, ascending in each row."""

    @property
    def n_tokens(self) -> int:
        return self.n_joints + self.n_registers + self.n_vertices

    @property
    def n_slots(self) -> int:
        return len(self.order)

    @cached_property
    def slots(self) -> IntArray:
        """(T,) the slot of each token."""
        tokens, slots = np.unique(self.order, return_index=True)
        assert len(tokens) == self.n_tokens
        return slots.astype(np.int64)

    @cached_property
    def row_indices(self) -> IntArray:
        """(nnz,) the row of each element of `indices`."""
        return np.repeat(np.arange(self.n_slots), np.diff(self.indptr))

    def dense_mask(self) -> NDArray[np.bool_]:
        """(S, S), True where the row's slot attends to the column's. S squared bytes: for small bodies."""
        mask = np.zeros((self.n_slots, self.n_slots), bool)
        mask[self.row_indices, self.indices] = True
        return mask

    def token_pairs(self) -> IntArray:
        """(nnz', 2) the mask as pairs of tokens, sorted, without padding: independent of the order."""
        real = self.slots[self.order] == np.arange(self.n_slots)
        pairs = np.stack([self.order[self.row_indices], self.order[self.indices]], 1)
        return np.unique(pairs[real[self.row_indices]], axis=0)

    def unrestricted(self) -> Scap:
        """The same slots with every token linked to every other: plain attention, for comparison."""
        real = self.slots[self.order] == np.arange(self.n_slots)
        mask = np.logical_and.outer(real, real)
        np.fill_diagonal(mask, True)
        indptr = np.concatenate([[0], mask.sum(1).cumsum()])
        return replace(self, indptr=indptr, indices=np.nonzero(mask)[1])

    @cached_property
    def tables(self) -> Tables:
        """What executions of the attention read. Made at the first use; a SCAP from the cache brings them along."""
        return make_tables(self.row_indices, self.indices, self.n_slots)


def joint_links(topology: BodyTopology, level: str) -> csr_matrix:
    """(J, V) boolean: each joint with the vertices it is regressed from and those it moves.

    A bone belongs to the joint nearest to its head in the template, a vertex to the bone of its largest
    skinning weight; so every vertex is linked to at least one joint.
    """
    from scipy.sparse import csr_matrix

    mesh: Level = topology.levels[level]
    regressor = mesh.joint_regressor
    joints = regressor.apply(mesh.vertices)
    distance = np.linalg.norm(topology.rig.bone_heads[:, None] - joints[None], axis=-1)
    strongest = np.take_along_axis(mesh.skin_indices, mesh.skin_weights.argmax(1)[:, None], 1)[:, 0]
    moved = distance.argmin(1)[strongest]
    used = regressor.weights != 0
    rows = np.concatenate([moved, np.nonzero(used)[0]])
    columns = np.concatenate([np.arange(len(moved)), regressor.indices[used]])
    links = csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(joints), len(mesh.vertices)))
    links.sum_duplicates()
    return links


def build_scap(faces: NDArray[np.integer], n_vertices: int, links: csr_matrix, rings: int = 2) -> Scap:
    """Build a SCAP from a mesh and its joint links. Everything stays sparse; deterministic.

    faces: (F, 3); links: (J, V) boolean, see `joint_links`; rings: how many edges a vertex sees far.
    """
    from scipy.sparse import bmat, csr_matrix, identity

    adjacency = _adjacency(faces, n_vertices)
    step = (adjacency + identity(n_vertices, dtype=bool, format="csr")).astype(bool)
    near = identity(n_vertices, dtype=bool, format="csr")
    for _ in range(rings):
        near = (near @ step).astype(bool)

    n_joints = links.shape[0]
    n_registers = -n_joints % TILE
    head = n_joints + n_registers
    to_vertices = csr_matrix((links.data, links.indices, links.indptr), shape=(n_joints, n_vertices))
    to_vertices.resize((head, n_vertices))
    # Joints and registers make one full block, so each of these tokens sees all the others of its kind.
    block = csr_matrix(np.ones((head, head), bool))
    mask = bmat([[block, to_vertices], [to_vertices.T, near]], format="coo")

    n_tokens = head + n_vertices
    n_padding = -n_tokens % TILE
    layout = _bisect(adjacency, np.arange(n_vertices))
    order = np.concatenate([np.arange(head), head + layout, np.zeros(n_padding, np.int64)]).astype(np.int64)
    slots = np.empty(n_tokens, np.int64)
    slots[order[:n_tokens]] = np.arange(n_tokens)
    padding = np.arange(n_tokens, n_tokens + n_padding)
    rows = np.concatenate([slots[mask.row], padding])
    columns = np.concatenate([slots[mask.col], padding])
    by_slot = csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(len(order), len(order)))
    by_slot.sum_duplicates()
    by_slot.sort_indices()
    return Scap(
        n_joints=n_joints,
        n_registers=n_registers,
        n_vertices=n_vertices,
        order=order,
        indptr=by_slot.indptr.astype(np.int64),
        indices=by_slot.indices.astype(np.int64),
    )


def _adjacency(faces: NDArray[np.integer], n_vertices: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    a = faces[:, [0, 1, 2]].ravel()
    b = faces[:, [1, 2, 0]].ravel()
    ones = np.ones(2 * len(a), np.int64)
    graph = csr_matrix(
        (ones, (np.concatenate([a, b]), np.concatenate([b, a]))), shape=(n_vertices, n_vertices)
    )
    return graph.astype(bool)


def _bisect(adjacency: csr_matrix, vertices: IntArray) -> IntArray:
    """Lay vertices out so that linked ones are near: halves by the Fiedler vector, cut at multiples of 16."""
    if len(vertices) <= TILE:
        return vertices
    graph = adjacency[vertices][:, vertices]
    cut = (len(vertices) // 2 + TILE - 1) // TILE * TILE
    ranking = _rank(graph, cut)
    first, second = vertices[np.sort(ranking[:cut])], vertices[np.sort(ranking[cut:])]
    return np.concatenate([_bisect(adjacency, first), _bisect(adjacency, second)])


def _rank(graph: csr_matrix, cut: int) -> IntArray:
    """Order a graph's nodes to be cut after `cut`: whole components, the one that is cut by Fiedler."""
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(graph, directed=False)
    ranking = np.argsort(labels, kind="stable")
    split = labels[ranking[cut]]
    nodes = np.flatnonzero(labels == split)
    start = int(np.searchsorted(labels[ranking], split))
    if start < cut and len(nodes) > 2:
        ranking[start : start + len(nodes)] = nodes[
            np.argsort(_fiedler(graph[nodes][:, nodes]), kind="stable")
        ]
    return ranking


def _fiedler(graph: csr_matrix) -> NDArray[np.float64]:
    """Eigenvector of the second smallest eigenvalue of a connected graph's Laplacian, with a fixed sign."""
    from scipy.linalg import eigh
    from scipy.sparse.csgraph import laplacian
    from scipy.sparse.linalg import eigsh

    matrix = laplacian(graph.astype(np.float64))
    n = matrix.shape[0]
    if n <= _DENSE_LIMIT:
        vector = eigh(matrix.toarray(), subset_by_index=[1, 1])[1][:, 0]
    else:
        # The start vector is fixed for determinism, and not constant, which would be the null vector.
        values, vectors = eigsh(matrix.tocsc(), k=2, sigma=-1e-4, v0=np.cos(np.arange(n) * 0.7))
        vector = vectors[:, values.argmax()]
    return vector * np.sign(vector[np.abs(vector).argmax()])
