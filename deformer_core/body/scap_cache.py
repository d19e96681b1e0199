"""The file in which the SCAP of a body's level is kept with its tables, so that nothing is derived at a start."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body import scap_tables as tables
from deformer_core.body.scap import Scap, build_scap, joint_links
from deformer_core.body.scap_tables import TILE, Buckets, Groups, Tables
from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.files import cache_folder, replace_file

FORMAT = 2
"""Of the file: 1 had no tables."""
COUNTS = ("n_joints", "n_registers", "n_vertices")
ARRAYS = ("order", "indptr", "indices")
TABLES: dict[str, type[Buckets] | type[Groups]] = {"buckets": Buckets, "rows": Groups, "columns": Groups}
"""Fields of `Tables`. Their arrays have names such as `buckets.sizes` in the file."""


def cached_scap(topology: BodyTopology, level: str, rings: int = 2, cache_dir: Path | None = None) -> Scap:
    """The SCAP of a level of a body, built once and kept in a file under `cache_dir`, by default `cache_folder`.

    A file that is corrupt, of another body or of another format is built again with one warning; a folder that cannot
    be written costs the building time at each start.
    """
    layout = (TILE, tables.GROWTH, tables.JOINED, tables.LONG, tables.SHORT)
    identity = f"{topology.name}:{topology.content_hash}:{level}:{rings}:{layout}:{FORMAT}"
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = (cache_dir or cache_folder()) / f"scap-{topology.name}-{level}-{key}.npz"
    if path.is_file():
        try:
            return _read(path, identity)
        except Exception as error:  # whatever a damaged archive makes numpy raise
            warnings.warn(f"{path} is not a usable SCAP ({error}); it is built again.", stacklevel=2)
    mesh = topology.levels[level]
    scap = build_scap(mesh.faces, len(mesh.vertices), joint_links(topology, level), rings)
    try:
        _write(scap, path, identity)
    except InputError:
        pass
    return scap


def _read(path: Path, identity: str) -> Scap:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        if str(file["identity"]) != identity:
            raise ValueError("it belongs to another body, or is of another format")
        counts: dict[str, Any] = {name: int(file[name]) for name in COUNTS}
        scap = Scap(**counts, **{name: file[name] for name in ARRAYS})
        found: dict[str, Any] = {
            name: kind(**{field.name: file[f"{name}.{field.name}"] for field in fields(kind)})
            for name, kind in TABLES.items()
        }
    vars(scap)["tables"] = Tables(**found)  # where the cached property would put them
    _check(scap)
    return scap


def _check(scap: Scap) -> None:
    n, links, buckets, n_tiles = scap.n_slots, scap.indices, scap.tables.buckets, scap.n_slots // TILE
    well_formed = (
        n % TILE == 0
        and scap.indptr.shape == (n + 1,)
        and len(links) == scap.indptr[-1]
        and _within(links, n)
        and len(np.unique(scap.order)) == scap.n_tokens == scap.order.max() + 1
        and np.array_equal(np.sort(buckets.rows), np.arange(n_tiles))
        and len(buckets.bits) == TILE * len(buckets.columns) == TILE * buckets.sizes.prod(1).sum()
        and _within(buckets.columns, n_tiles)
        and all(_fit(groups, n_tiles) for groups in (scap.tables.rows, scap.tables.columns))
    )
    if not well_formed:
        raise ValueError("its arrays do not fit together")


def _fit(groups: Groups, n_tiles: int) -> bool:
    rows, bounds = groups.pieces[:, 0], groups.pieces[:, 1:]
    inside = _within(rows, n_tiles) and _within(groups.columns, n_tiles) and _within(bounds, len(groups.bits) + 1)
    return inside and len(groups.bits) == len(groups.columns) and _within(groups.cuts[:, 0], n_tiles)


def _within(values: NDArray[np.integer], end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())


def _write(scap: Scap, path: Path, identity: str) -> None:
    arrays = {name: getattr(scap, name) for name in (*COUNTS, *ARRAYS)}
    for name in TABLES:
        arrays |= {f"{name}.{key}": value for key, value in vars(getattr(scap.tables, name)).items()}
    with replace_file(path) as temporary:
        np.savez(temporary, allow_pickle=False, identity=identity, **arrays)
