"""Baked bodies: one safetensors file each, read in milliseconds, made by `training/bake_body.py`."""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deformer_core.body.topology import LEVELS, BodyTopology, Level, Rig, RowBlend, mirror_names
from deformer_core.errors import InputError

FORMAT = "deformer-body"
VERSION = 1
_SHIPPED = {"anny": Path(__file__).parent / "data" / "anny_notoes.safetensors"}


@cache
def load_body(name: str = "anny") -> BodyTopology:
    """A shipped body by name, or a baked file by path. Errors: `InputError` for what is neither."""
    path = _SHIPPED.get(name, Path(name))
    if not path.is_file():
        raise InputError(f"There is no body '{name}': give one of {sorted(_SHIPPED)} or a file of bake_body.py.")
    return read_body(path)


def read_body(path: Path) -> BodyTopology:
    """Read a baked body. Errors: `InputError` if the file is corrupt or of another format version."""
    try:
        with safe_open(path, framework="numpy") as file:
            meta = json.loads((file.metadata() or {}).get("body", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a readable body file ({error}); bake it again.") from error
    if meta.get("format") != FORMAT or meta.get("version") != VERSION:
        raise InputError(f"{path} is not a body of format {FORMAT} {VERSION}; bake it again with bake_body.py.")
    sizes = {level: len(tensors[f"{level}.vertices"]) for level in LEVELS}
    bone_names = tuple(meta["bone_names"])
    return BodyTopology(
        name=meta["name"],
        version=meta["version"],
        content_hash=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        joint_names=tuple(meta["joint_names"]),
        joint_parents=tuple(meta["joint_parents"]),
        part_names=tuple(meta["part_names"]),
        levels={level: _read_level(tensors, level, sizes[level]) for level in LEVELS},
        upsample={
            "middle": _read_blend(tensors, "upsample.middle", sizes["coarse"]),
            "full": _read_blend(tensors, "upsample.full", sizes["middle"]),
        },
        rig=Rig(
            bone_names=bone_names,
            bone_parents=tuple(meta["bone_parents"]),
            bone_heads=tensors["rig.heads"],
            head_basis=tensors["rig.head_basis"].astype(np.float32),
            shape_samples=tensors["rig.shape_samples"].astype(np.float32),
            mirror=np.array(mirror_names(bone_names), np.int32),
        ),
    )


def _read_level(tensors: dict[str, NDArray], level: str, size: int) -> Level:
    return Level(
        vertices=tensors[f"{level}.vertices"],
        faces=tensors[f"{level}.faces"].astype(np.int32),
        joint_regressor=_read_blend(tensors, f"{level}.joints", size),
        skin_indices=tensors[f"{level}.skin_indices"].astype(np.int32),
        skin_weights=tensors[f"{level}.skin_weights"],
        shape_basis=tensors[f"{level}.shape_basis"].astype(np.float32),
        parts=tensors[f"{level}.parts"],
    )


def _read_blend(tensors: dict[str, NDArray], key: str, n_input: int) -> RowBlend:
    return RowBlend(tensors[f"{key}.indices"].astype(np.int32), tensors[f"{key}.weights"], n_input)


def write_body(body: BodyTopology, path: Path) -> None:
    """Write a baked body, whole or not at all. Indices are stored in 16 bits, bases in half precision."""
    tensors: dict[str, NDArray] = {
        "rig.heads": body.rig.bone_heads,
        "rig.head_basis": body.rig.head_basis.astype(np.float16),
        "rig.shape_samples": body.rig.shape_samples.astype(np.float16),
    }
    for name, level in body.levels.items():
        tensors |= {
            f"{name}.vertices": level.vertices,
            f"{name}.faces": level.faces.astype(np.uint16),
            f"{name}.joints.indices": level.joint_regressor.indices.astype(np.uint16),
            f"{name}.joints.weights": level.joint_regressor.weights,
            f"{name}.skin_indices": level.skin_indices.astype(np.uint8),
            f"{name}.skin_weights": level.skin_weights,
            f"{name}.shape_basis": level.shape_basis.astype(np.float16),
            f"{name}.parts": level.parts,
        }
    for name, blend in body.upsample.items():
        tensors[f"upsample.{name}.indices"] = blend.indices.astype(np.uint16)
        tensors[f"upsample.{name}.weights"] = blend.weights
    meta = {
        "format": FORMAT,
        "version": body.version,
        "name": body.name,
        "joint_names": body.joint_names,
        "joint_parents": body.joint_parents,
        "part_names": body.part_names,
        "bone_names": body.rig.bone_names,
        "bone_parents": body.rig.bone_parents,
    }
    temporary = path.with_name(path.name + ".tmp")
    contiguous = {key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())}
    save_file(contiguous, temporary, metadata={"body": json.dumps(meta)})
    os.replace(temporary, path)
