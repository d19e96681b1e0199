"""A made-up body in the formats of SMPL's files: 6890, 1723 and 431 vertices in tubes around 24 bones.

Nothing of it comes from SMPL but names, shapes and the places of a few landmarks in the list of vertices.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix
from scipy.spatial import cKDTree

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
# Heads of the bones of the body's left half, metres, x to the left, y up, z to the front: made up.
_HEADS = {
    0: (0, -0.2, 0), 1: (0.09, -0.29, 0), 3: (0, -0.09, -0.02), 4: (0.11, -0.7, 0), 6: (0, 0.04, -0.02),
    7: (0.1, -1.12, -0.03), 9: (0, 0.12, 0), 10: (0.12, -1.18, 0.05), 12: (0, 0.3, -0.02), 13: (0.08, 0.2, -0.01),
    15: (0, 0.4, 0.02), 16: (0.19, 0.22, -0.02), 18: (0.45, 0.21, -0.03), 20: (0.7, 0.22, -0.03),
    22: (0.79, 0.21, -0.04),
}  # fmt: skip
_TIPS = {10: (0.14, -1.2, 0.16), 15: (0, 0.6, 0.03), 22: (0.9, 0.2, -0.04)}
_CHILD = {0: 3, 9: 12}  # where a bone has several
_RADII = (0.13, 0.08, 0.08, 0.12, 0.05, 0.05, 0.13, 0.04, 0.04, 0.13, 0.04, 0.04, 0.06, 0.06, 0.06, 0.1, 0.05, 0.05,
          0.04, 0.04, 0.03, 0.03, 0.025, 0.025)  # fmt: skip
_RINGS = (5,) * 12 + (4,) + (4,) * 10 + (3,)  # of the coarse tubes; the last bone ends them at 107
_CAPPED = 21
"""Tubes with a vertex at either end; 42 with the 107 * 64 of the rings make 6890."""
_CAPS = {"full": 42, "middle": 11, "coarse": 3}
_LANDMARKS = {
    332: (0, 0.48, 0.2), 2800: (0.04, 0.53, 0.2), 6260: (-0.04, 0.53, 0.2), 583: (0.2, 0.5, 0.03),
    4071: (-0.2, 0.5, 0.03), 3216: (0.13, -1.2, 0.2), 3226: (0.2, -1.2, 0.15), 3387: (0.1, -1.15, -0.2),
    6617: (-0.13, -1.2, 0.2), 6624: (-0.2, -1.2, 0.15), 6787: (-0.1, -1.15, -0.2),
}  # fmt: skip
# Bones whose heads stand for Human3.6M's joints, the right leg first as in METRO's regressor.
_H36M_BONES = (0, 2, 5, 8, 1, 4, 7, 6, 12, 15, 15, 16, 18, 20, 17, 19, 21)


@dataclass
class MadeSmpl:
    """Axes as SMPL's. The arrays are those of the written files, in double precision."""

    vertices: np.ndarray
    faces: dict[str, np.ndarray]
    shape_basis: np.ndarray
    pose_basis: np.ndarray
    bone_regressor: np.ndarray
    weights: np.ndarray
    h36m_regressor: np.ndarray
    selection: dict[str, np.ndarray]
    upsample: dict[str, csc_matrix]


def mirrored(points: dict[int, tuple[float, float, float]]) -> dict[int, np.ndarray]:
    """With the bones of the right half, whose numbers follow those of the left one where x is not 0."""
    both = {}
    for bone, (x, y, z) in points.items():
        both[bone] = np.array([x, y, z])
        if x:
            both[bone + 1] = np.array([-x, y, z])
    return both


def make_smpl(
    folder: Path, suffix: str = ".npz", seed: int = 0, gender: str = "NEUTRAL", left_leg_first: bool = True
) -> MadeSmpl:
    """Write the three files. suffix: ".npz", or ".pkl" with expressions of chumpy inside; left_leg_first: as in the
    regressor of SPIN."""
    made = _make(np.random.default_rng(seed))
    folder.mkdir(parents=True, exist_ok=True)
    model = {
        "v_template": made.vertices,
        "shapedirs": made.shape_basis,
        "posedirs": made.pose_basis,
        "J_regressor": csc_matrix(made.bone_regressor),
        "weights": made.weights,
        "kintree_table": np.array([PARENTS, range(24)]).astype(np.uint32),  # -1 becomes 4294967295
        "f": made.faces["full"].astype(np.uint32),
        "bs_style": "lbs",
    }
    if suffix == ".npz":
        np.savez(folder / f"SMPL_{gender}.npz", **{**model, "J_regressor": made.bone_regressor})
    else:
        with chumpy_classes() as (Ch, Select), (folder / f"SMPL_{gender}.pkl").open("wb") as file:
            more = np.concatenate([made.shape_basis, np.ones((6890, 3, 2))], 2)
            chosen = np.arange(more.size).reshape(more.shape)[..., :10].ravel()
            model["shapedirs"] = Select(a=Ch(x=more), idxs=chosen, preferred_shape=(6890, 3, 10))
            model["weights"] = Ch(x=made.weights)
            pickle.dump(model, file, protocol=2)
    rows = [0, 4, 5, 6, 1, 2, 3, *range(7, 17)] if left_leg_first else range(17)
    np.save(folder / "J_regressor_h36m.npy", made.h36m_regressor[rows])
    write_meshes(folder / "mesh_downsampling.npz", made)
    return made


class ForeignMesh:
    """The real archive holds templates of a class that nobody has (key M); reading it must not need them."""


def write_meshes(path: Path, made: MadeSmpl, **changes: np.ndarray) -> None:
    sizes = {level: len(kept) for level, kept in made.selection.items()}
    places = {level: {int(v): i for i, v in enumerate(kept)} for level, kept in made.selection.items()}
    down = []
    for source, target in (("full", "middle"), ("middle", "coarse")):
        columns = [places[source][int(v)] for v in made.selection[target]]
        ones = np.ones(sizes[target])
        down.append(csc_matrix((ones, (np.arange(sizes[target]), columns)), shape=(sizes[target], sizes[source])))
    near = [csc_matrix((sizes[level],) * 2) for level in sizes]
    arrays = {
        "A": boxed(near),
        "U": boxed([made.upsample["full"], made.upsample["middle"]]),
        "M": boxed([ForeignMesh()] * 3),
        "D": boxed(down),
        "F": boxed([made.faces[level].astype(np.uint32) for level in ("full", "middle", "coarse")]),
    }
    np.savez(path, **(arrays | changes))  # type: ignore[arg-type]


def boxed(values: list) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@contextmanager
def chumpy_classes() -> Iterator[tuple[type, type]]:
    """Classes that pickle as chumpy's do: by name, with their state."""

    def made(module: str, name: str) -> type:
        def hold(self: object, **state: object) -> None:
            self.__dict__.update(state)

        return type(name, (), {"__module__": module, "__init__": hold})

    classes = made("chumpy.ch", "Ch"), made("chumpy.reordering", "Select")
    modules = {name: types.ModuleType(name) for name in ("chumpy", "chumpy.ch", "chumpy.reordering")}
    modules["chumpy.ch"].Ch, modules["chumpy.reordering"].Select = classes  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name in modules:
            del sys.modules[name]


def _make(rng: np.random.Generator) -> MadeSmpl:
    heads = mirrored(_HEADS)
    tips = mirrored(_TIPS)
    for bone in range(23, -1, -1):
        children = [child for child, parent in enumerate(PARENTS) if parent == bone]
        if children:
            tips[bone] = heads[_CHILD.get(bone, children[0])]
    vertices, bones, along, faces, kept = _tubes(heads, tips)
    order = _landmarks_in_place(vertices)
    place = np.argsort(order)
    vertices, bones, along = vertices[order], bones[order], along[order]

    selection = {level: np.sort(place[chosen]) for level, chosen in kept.items()}
    level_faces = {level: np.searchsorted(selection[level], place[mesh]) for level, mesh in faces.items()}
    joints = np.array([heads[bone] for bone in range(24)])
    weights = _skinning(bones, along)
    regressor = np.zeros((24, 6890))
    for bone in range(24):
        ring = (bones == bone) & (along == 0)
        regressor[bone, ring] = 1 / ring.sum()
    shape_basis = np.einsum("kcd,vd->vck", rng.normal(0, 0.03, (10, 3, 3)), vertices)
    pose_basis = np.zeros((6890, 3, 23, 9))
    for bone in range(1, 24):
        bulge = rng.normal(0, 0.05, (9, 3, 3))
        shift = np.einsum("ecd,vd->vce", bulge, vertices - joints[bone])
        pose_basis[:, :, bone - 1] = shift * weights[:, bone, None, None]
    return MadeSmpl(
        vertices=vertices,
        faces=level_faces,
        shape_basis=shape_basis,
        pose_basis=pose_basis.reshape(6890, 3, 207),
        bone_regressor=regressor,
        weights=weights,
        h36m_regressor=0.9998 * regressor[list(_H36M_BONES)],
        selection=selection,
        upsample={
            target: _upsampling(rng, vertices, selection[source], selection[target])
            for target, source in (("middle", "coarse"), ("full", "middle"))
        },
    )


def _tubes(heads: dict, tips: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict, dict]:
    """Vertices, their bones and places along them (0 to 1); faces and kept vertices of each level."""
    points, bones, along = [], [], []
    faces: dict[str, list] = {level: [] for level in _CAPS}
    kept: dict[str, list] = {level: [] for level in _CAPS}
    caps: list[tuple[int, dict[str, np.ndarray], bool]] = []
    start = 0
    for bone in range(24):
        axis = tips[bone] - heads[bone]
        side = np.cross(axis, (0.3, 0.2, 1.0))
        side /= np.linalg.norm(side)
        other = np.cross(axis / np.linalg.norm(axis), side)
        rings = 4 * _RINGS[bone] if bone < 23 else 4 * (107 - sum(_RINGS[:23]))
        t = np.repeat(np.linspace(0, 1, rings), 16)
        angle = np.tile(np.arange(16) * np.pi / 8, rings)
        round_ = np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other
        points.append(heads[bone] + t[:, None] * axis + _RADII[bone] * round_)
        bones.append(np.full(len(t), bone))
        along.append(t)
        grid = start + np.arange(rings * 16).reshape(rings, 16)
        ends: dict[str, np.ndarray] = {}
        for level, step in (("full", 1), ("middle", 2), ("coarse", 4)):
            part = grid[::step, ::step]
            kept[level].append(part.ravel())
            a, b, c, d = part[:-1], np.roll(part[:-1], -1, 1), np.roll(part[1:], -1, 1), part[1:]
            faces[level] += [np.stack(corner, -1).reshape(-1, 3) for corner in ((a, b, c), (a, c, d))]
            ends[level] = part[[0, -1]]
        if bone < _CAPPED:
            caps += [(bone, ends, False), (bone, ends, True)]
        start += rings * 16
    for number, (bone, ends, is_tip) in enumerate(caps):
        points.append((tips if is_tip else heads)[bone][None])
        bones.append(np.array([bone]))
        along.append(np.array([1.0 if is_tip else 1e-9]))  # not of the first ring
        for level, count in _CAPS.items():
            if number < count:
                kept[level].append(np.array([start]))
                ring = ends[level][int(is_tip)]
                pair = (ring, np.roll(ring, -1)) if is_tip else (np.roll(ring, -1), ring)
                faces[level].append(np.stack([np.full(len(ring), start), *pair], -1))
        start += 1
    meshes = {level: np.concatenate(mesh) for level, mesh in faces.items()}
    chosen = {level: np.concatenate(mesh) for level, mesh in kept.items()}
    return np.concatenate(points), np.concatenate(bones), np.concatenate(along), meshes, chosen


def _landmarks_in_place(vertices: np.ndarray) -> np.ndarray:
    """(6890,) which vertex comes at each place of the list, so that landmarks come where SMPL has them."""
    free = np.ones(len(vertices), bool)
    order = np.full(len(vertices), -1)
    for number, target in _LANDMARKS.items():
        distance = np.where(free, np.linalg.norm(vertices - np.array(target), axis=1), np.inf)
        order[number] = distance.argmin()
        free[order[number]] = False
    order[order < 0] = np.flatnonzero(free)
    return order


def _skinning(bones: np.ndarray, along: np.ndarray) -> np.ndarray:
    """(6890, 24): a bone's own, shared with its parent near its head and with its child near its tip."""
    weights = np.zeros((len(bones), 24))
    for bone, parent in enumerate(PARENTS):
        rows = np.flatnonzero(bones == bone)
        t = along[rows]
        to_parent = 0.45 * np.clip(1 - t / 0.3, 0, 1) * (parent >= 0)
        children = [child for child, other in enumerate(PARENTS) if other == bone]
        to_child = 0.45 * np.clip((t - 0.7) / 0.3, 0, 1) * bool(children)
        weights[rows, bone] = 1 - to_parent - to_child
        weights[rows, max(parent, 0)] += to_parent
        weights[rows, _CHILD.get(bone, children[0] if children else 0)] += to_child
    return weights


def _upsampling(rng: np.random.Generator, vertices: np.ndarray, source: np.ndarray, target: np.ndarray) -> csc_matrix:
    """Three of the source's vertices a row. One row in twenty does not sum to 1, but gives the template's vertex."""
    nearest = cKDTree(vertices[source]).query(vertices[target], 3)[1]
    corners = vertices[source][nearest]
    offsets = corners - vertices[target][:, None]
    gram = offsets @ offsets.swapaxes(1, 2) + 1e-4 * np.eye(3)
    weights = np.linalg.solve(gram, np.ones((len(target), 3, 1)))[..., 0]
    weights /= weights.sum(1, keepdims=True)
    for row in rng.choice(len(target), len(target) // 20, replace=False):
        missing = vertices[target][row] - corners[row].T @ weights[row]
        weights[row] += np.linalg.lstsq(corners[row].T, missing, rcond=0.03)[0]
    rows = np.repeat(np.arange(len(target)), 3)
    return csc_matrix((weights.ravel(), (rows, nearest.ravel())), shape=(len(target), len(source)))
