"""Small SCAPs."""

import numpy as np
from scipy.sparse import csr_matrix

from deformer_core.body.scap import Scap, build_scap


def strip(rng: np.random.Generator, n_vertices: int) -> Scap:
    """A strip of triangles and three joints, each of which sees a fifth of its vertices."""
    faces = np.arange(n_vertices - 2)[:, None] + np.arange(3)
    return build_scap(faces, n_vertices, csr_matrix(rng.random((3, n_vertices)) < 0.2), rings=1)
