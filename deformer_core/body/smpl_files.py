"""SMPL's files as users hold them. The licence lets nobody pass the model on, so none of it is in this project.

A folder, named by $DEFORMER_SMPL, holds

- `SMPL_NEUTRAL.npz` or `.pkl` (also MALE, FEMALE; or the names of the release, such as
  `basicModel_neutral_lbs_10_207_0_v1.0.0.pkl`): the model;
- `J_regressor_h36m.npy` (17, 6890), or `J_regressor_h36m_correct.npy`, whose legs come in the other order;
- `mesh_downsampling.npz`: the meshes of 1723 and 431 vertices and the way back to all (keys U, D, F).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.plain_pickle import as_array, read_archive, read_pickle
from deformer_core.body.topology import RowBlend
from deformer_core.errors import InputError

DoubleArray = NDArray[np.float64]
Shape = tuple[int | None, ...]

VARIABLE = "DEFORMER_SMPL"
MODEL_PAGE = "https://smpl.is.tue.mpg.de"
MESH_PAGE = "https://github.com/nkolot/GraphCMR/tree/master/data"
REGRESSOR_NAMES = ("J_regressor_h36m.npy", "J_regressor_h36m_correct.npy")
MESH_NAME = "mesh_downsampling.npz"
SMPL_BODIES = {"smpl": "NEUTRAL", "smpl_male": "MALE", "smpl_female": "FEMALE"}
"""Body names and the genders of their files."""
_RELEASED = {"NEUTRAL": "neutral", "MALE": "m", "FEMALE": "f"}

N_VERTICES, N_BONES, N_SHAPE = 6890, 24, 10
_SHAPES: dict[str, Shape] = {
    "v_template": (N_VERTICES, 3),
    "shapedirs": (N_VERTICES, 3, N_SHAPE),
    "posedirs": (N_VERTICES, 3, 9 * (N_BONES - 1)),
    "J_regressor": (N_BONES, N_VERTICES),
    "weights": (N_VERTICES, N_BONES),
    "kintree_table": (2, N_BONES),
    "f": (None, 3),
}


@dataclass(frozen=True)
class SmplFiles:
    """The three files of one body."""

    model: Path
    regressor: Path
    meshes: Path

    @classmethod
    def find(cls, name: str) -> SmplFiles:
        """Those of a name of `SMPL_BODIES` in $DEFORMER_SMPL. Errors: `InputError` with what is missing."""
        gender = SMPL_BODIES[name]
        if not os.environ.get(VARIABLE):
            raise InputError(
                f"body '{name}' is made of your own files: set {VARIABLE} to a folder with SMPL_{gender}.npz or .pkl "
                f"(from {MODEL_PAGE}), {REGRESSOR_NAMES[0]} and {MESH_NAME} (both from {MESH_PAGE})"
            )
        folder = Path(os.environ[VARIABLE])
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}: set {VARIABLE} to the one with SMPL's files")
        released = re.compile(rf"basicmodel_{_RELEASED[gender]}_lbs_10_207_0_v1\.\d\.\d\.pkl", re.IGNORECASE)
        models = [f"SMPL_{gender}.npz", f"SMPL_{gender}.pkl"]
        models += sorted(path.name for path in folder.iterdir() if released.fullmatch(path.name))
        return cls(
            _first(folder, models, f"SMPL_{gender}.npz or SMPL_{gender}.pkl", MODEL_PAGE),
            _first(folder, REGRESSOR_NAMES, REGRESSOR_NAMES[0], MESH_PAGE),
            _first(folder, [MESH_NAME], MESH_NAME, MESH_PAGE),
        )

    def digest(self) -> str:
        """Of the files' bytes."""
        total = hashlib.sha256()
        for path in (self.model, self.regressor, self.meshes):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        return total.hexdigest()


def _first(folder: Path, names: Sequence[str], what: str, page: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"SMPL needs {what} in {folder} (${VARIABLE}): get it from {page}")


@dataclass(frozen=True)
class SmplArrays:
    """What the files say, in their axes: metres, x to the body's left, y up, z to its front. V is 6890."""

    vertices: DoubleArray
    """(V, 3)"""
    shape_basis: DoubleArray
    """(V, 3, 10)"""
    pose_basis: DoubleArray
    """(V, 3, 207), the last axis the elements of 23 matrices, each row by row."""
    bone_regressor: DoubleArray
    """(24, V)"""
    skin_weights: DoubleArray
    """(V, 24)"""
    bone_parents: tuple[int, ...]
    h36m_regressor: DoubleArray
    """(17, V): pelvis, the right leg from the hip, the left leg, spine, neck, jaw, head, left arm, right arm."""
    faces: dict[str, NDArray[np.int32]]
    """(F, 3) of each level."""
    selection: dict[str, NDArray[np.int64]]
    """Vertices of the full level that each level keeps."""
    upsample: dict[str, RowBlend]
    """"middle" from coarse vertices, "full" from middle ones. Not all rows sum to 1."""

    def digest(self) -> str:
        """Of the numbers in single precision, whichever kind of file they came from."""
        total = hashlib.sha256(repr(self.bone_parents).encode())
        arrays: list[NDArray[Any]] = [self.vertices, self.shape_basis, self.pose_basis, self.bone_regressor]
        arrays += [self.skin_weights, self.h36m_regressor, *self.faces.values(), *self.selection.values()]
        arrays += [array for blend in self.upsample.values() for array in (blend.indices, blend.weights)]
        for array in arrays:
            total.update(np.ascontiguousarray(array, np.float32).tobytes())
        return total.hexdigest()


def read_smpl(files: SmplFiles) -> SmplArrays:
    """Read and check all three files. Errors: `InputError` naming the file and what is wrong with it."""
    model = _read_model(files.model)
    regressor = _guarded(files.regressor, np.load, files.regressor)
    meshes = _guarded(files.meshes, read_archive, files.meshes, "UDF")
    for key in "UDF":
        if key not in meshes:
            raise InputError(f"{files.meshes} has no {key}: get it from {MESH_PAGE}")
    selection = _guarded(files.meshes, _selections, meshes["D"])
    sizes = {level: len(kept) for level, kept in selection.items()}
    return SmplArrays(
        vertices=model["v_template"],
        shape_basis=model["shapedirs"],
        pose_basis=model["posedirs"],
        bone_regressor=model["J_regressor"],
        skin_weights=model["weights"],
        bone_parents=(-1, *model["kintree_table"][0, 1:].astype(int).tolist()),
        h36m_regressor=_right_leg_first(
            files.regressor, _checked(files.regressor, "the array", regressor, (17, N_VERTICES)), model["v_template"]
        ),
        faces={"full": model["f"].astype(np.int32)} | _guarded(files.meshes, _faces, meshes["F"], sizes),
        selection=selection,
        upsample=_guarded(files.meshes, _upsampling, meshes["U"], sizes),
    )


def _read_model(path: Path) -> dict[str, DoubleArray]:
    read = (read_pickle, path) if path.suffix == ".pkl" else (read_archive, path, _SHAPES)
    found = _guarded(path, *read)
    values = {}
    for key, shape in _SHAPES.items():
        if key not in found:
            raise InputError(f"{path} has no {key}: it is not an SMPL model, download it again from {MODEL_PAGE}")
        values[key] = _guarded(path, as_array, found[key])
        if key == "shapedirs":
            values[key] = values[key][..., :N_SHAPE]  # some releases have 300
        values[key] = _checked(path, key, values[key], shape)
    return values


def _guarded(path: Path, read: Callable[..., Any], *arguments: Any) -> Any:
    """`read(*arguments)`, with whatever a damaged or foreign file makes it raise turned into one sentence."""
    try:
        return read(*arguments)
    except Exception as error:
        raise InputError(f"{path} cannot be used ({error or type(error).__name__}): download it again") from error


def _checked(path: Path, key: str, value: NDArray[Any], shape: Shape) -> DoubleArray:
    fits = value.ndim == len(shape) and all(wanted in (None, size) for wanted, size in zip(shape, value.shape))
    if not fits:
        raise InputError(f"{path}: {key} has the shape {value.shape}, SMPL's is {shape}: give the file of SMPL itself")
    value = value.astype(np.float64)
    if not np.isfinite(value).all():
        raise InputError(f"{path}: {key} is not finite everywhere, so it is damaged: download it again")
    return value


def _right_leg_first(path: Path, regressor: DoubleArray, vertices: DoubleArray) -> DoubleArray:
    """Two files of this regressor are about, with different legs first; the template tells which one it is."""
    lateral = (regressor @ vertices)[:, 0]
    if lateral[11] < lateral[14]:
        raise InputError(f"{path}: joint 11 is no left shoulder of this body: get the file from {MESH_PAGE}")
    legs = [1, 2, 3, 4, 5, 6] if lateral[1] < lateral[4] else [4, 5, 6, 1, 2, 3]
    return regressor[[0, *legs, *range(7, 17)]]


def _selections(matrices: Sequence[Any]) -> dict[str, NDArray[np.int64]]:
    """D has one 1 a row: the coarser meshes keep some of the vertices."""
    selection = {"full": np.arange(N_VERTICES)}
    for level, matrix in zip(("middle", "coarse"), matrices, strict=True):
        entries = matrix.tocoo()
        order = np.argsort(entries.row)
        if not np.array_equal(entries.row[order], np.arange(matrix.shape[0])) or (entries.data != 1).any():
            raise ValueError("D does not select vertices")
        finer = list(selection.values())[-1]
        if matrix.shape[1] != len(finer):
            raise ValueError(f"D has a matrix of shape {matrix.shape} where {len(finer)} vertices come in")
        selection[level] = finer[entries.col[order]]
    return selection


def _upsampling(matrices: Sequence[Any], sizes: dict[str, int]) -> dict[str, RowBlend]:
    blends = {}
    for target, source in (("middle", "coarse"), ("full", "middle")):
        shape = (sizes[target], sizes[source])
        found = [matrix.tocoo() for matrix in matrices if matrix.shape == shape]
        if not found:
            raise ValueError(f"U has no matrix of shape {shape}")
        blends[target] = RowBlend.from_entries(found[0].row, found[0].col, found[0].data, shape)
    return blends


def _faces(meshes: Sequence[Any], sizes: dict[str, int]) -> dict[str, NDArray[np.int32]]:
    faces = {}
    for level in ("middle", "coarse"):
        found = [mesh for mesh in meshes if np.max(mesh) == sizes[level] - 1]
        if not found:
            raise ValueError(f"F has no mesh of {sizes[level]} vertices")
        faces[level] = np.asarray(found[0]).astype(np.int32)
    return faces
