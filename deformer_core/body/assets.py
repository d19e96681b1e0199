"""Bodies by name. Each is one safetensors file, read in milliseconds.

Anny's is shipped, made by `training/bake_body.py`. SMPL's is made of the user's own files and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deformer_core.body.smpl import VERSION as SMPL_VERSION
from deformer_core.body.smpl import build_smpl
from deformer_core.body.smpl_files import SMPL_BODIES, SmplFiles, read_smpl
from deformer_core.body.topology import LEVELS, BodyTopology, Level, Rig, RowBlend, mirror_names
from deformer_core.errors import InputError
from deformer_core.files import cache_folder, replace_file

FORMAT = "deformer-body"
VERSION = 1
_SHIPPED = {"anny": Path(__file__).parent / "data" / "anny_notoes.safetensors"}


def load_body(name: str = "anny") -> BodyTopology:
    """A body by name, or a baked file by path.

    Names: "anny", which is shipped; "smpl", "smpl_male" and "smpl_female", made of the files in $DEFORMER_SMPL.
    Errors: `InputError` for what is none of these, and for a file of SMPL that is missing or no good.
    """
    if name in SMPL_BODIES:
        return _load_smpl(name, SmplFiles.find(name))
    path = _SHIPPED.get(name, Path(name))
    if not path.is_file():
        known = ", ".join((*_SHIPPED, *SMPL_BODIES))
        raise InputError(f"There is no body '{name}': give one of {known} or a file of bake_body.py.")
    return _load_file(path)


@cache
def _load_file(path: Path) -> BodyTopology:
    return read_body(path)


@cache
def _load_smpl(name: str, files: SmplFiles) -> BodyTopology:
    """From the cache, where what was made of these very files is kept; a damaged entry is made again."""
    kept = cache_folder() / f"{name}-{SMPL_VERSION}-{VERSION}-{files.digest()[:16]}.safetensors"
    if kept.is_file():
        try:
            return read_body(kept)
        except InputError as error:
            warnings.warn(f"{error} It is made again.", stacklevel=3)
    body = build_smpl(name, read_smpl(files))
    with suppress(InputError):  # a folder that cannot be written costs time alone
        write_body(body, kept, exact=True)
    return body


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
        content_hash=meta.get("content_hash") or hashlib.sha256(path.read_bytes()).hexdigest()[:16],
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
        extra_regressors={
            name: _read_blend(tensors, f"extra.{name}", sizes["full"]) for name in meta.get("extra_regressors", ())
        },
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
        pose_basis=tensors.get(f"{level}.pose_basis"),
    )


def _read_blend(tensors: dict[str, NDArray], key: str, n_input: int) -> RowBlend:
    return RowBlend(tensors[f"{key}.indices"].astype(np.int32), tensors[f"{key}.weights"], n_input)


def write_body(body: BodyTopology, path: Path, exact: bool = False) -> None:
    """Write a baked body, whole or not at all. Indices are stored in 16 bits.

    exact: for a body that is made of other files: bases in single precision instead of half, and the content hash of
    those files kept, where otherwise it is that of the file itself.
    """
    precision = np.float32 if exact else np.float16
    tensors: dict[str, NDArray] = {
        "rig.heads": body.rig.bone_heads,
        "rig.head_basis": body.rig.head_basis.astype(precision),
        "rig.shape_samples": body.rig.shape_samples.astype(precision),
    }
    for name, level in body.levels.items():
        tensors |= {
            f"{name}.vertices": level.vertices,
            f"{name}.faces": level.faces.astype(np.uint16),
            f"{name}.skin_indices": level.skin_indices.astype(np.uint8),
            f"{name}.skin_weights": level.skin_weights,
            f"{name}.shape_basis": level.shape_basis.astype(precision),
            f"{name}.parts": level.parts,
        }
        if level.pose_basis is not None:
            tensors[f"{name}.pose_basis"] = level.pose_basis
    blends = {f"{name}.joints": level.joint_regressor for name, level in body.levels.items()}
    blends |= {f"upsample.{name}": blend for name, blend in body.upsample.items()}
    blends |= {f"extra.{name}": blend for name, blend in body.extra_regressors.items()}
    for name, blend in blends.items():
        tensors[f"{name}.indices"] = blend.indices.astype(np.uint16)
        tensors[f"{name}.weights"] = blend.weights
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
    if exact:
        meta |= {"content_hash": body.content_hash, "extra_regressors": list(body.extra_regressors)}
    contiguous = {key: np.ascontiguousarray(value) for key, value in sorted(tensors.items())}
    with replace_file(path) as temporary:
        save_file(contiguous, temporary, metadata={"body": json.dumps(meta)})
