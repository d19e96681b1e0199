"""Annotated datasets of the field, each by a reader of its own format: `open_dataset` is the way in.

A reader is `read(path, topology, ...) -> Sequence[Annotation]`: records are held in memory or found on disk when asked
for, images are loaded by the annotations. Sequences can be pickled. All errors are `InputError`s that name the file
and, where it is one record's, the record and the field.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints
from urllib.parse import parse_qsl

from deformer_core.body.topology import BodyTopology
from deformer_core.config import load_config
from deformer_core.data.annotation import Annotation
from deformer_core.data.readers import (
    coco,
    coco_people,
    emdb,
    hmr2,
    human36m,
    humandata,
    metro,
    mpii,
    muco,
    spin,
    synthetic,
    threedpw,
    up3d,
)
from deformer_core.errors import InputError

Reader = Callable[..., Sequence[Annotation]]


def _read_recorded(
    path: Path,
    topology: BodyTopology,
    images: str | None = None,
    meshes: str | None = None,
    corrections: Path | None = None,
    every: int = 1,
) -> Sequence[Annotation]:
    """Bags are read by the ROS package, which stands above this one."""
    try:
        module = importlib.import_module("deformer_ros.recorded")
    except ModuleNotFoundError as error:
        raise InputError(f"{path} is read by deformer_ros, which is not installed with this package") from error
    people: Sequence[Annotation] = module.read(path, topology, images, meshes, corrections, every)
    return people


READERS: dict[str, Reader] = {
    "coco": coco.read,
    "coco_people": coco_people.read,
    "emdb": emdb.read,
    "hmr2": hmr2.read,
    "human36m": human36m.read,
    "humandata": humandata.read,
    "metro": metro.read,
    "mpii": mpii.read,
    "muco": muco.read,
    "recorded": _read_recorded,
    "spin": spin.read,
    "synthetic": synthetic.read,
    "threedpw": threedpw.read,
    "up3d": up3d.read,
}


def open_dataset(spec: str | Mapping[str, Any], topology: BodyTopology) -> Sequence[Annotation]:
    """A dataset by its reader's name, path and further arguments of the reader.

    spec: {"reader": "spin", "path": "3dpw_test.npz", "images": "3DPW"}, or the same as a text:
    spin:3dpw_test.npz?images=3DPW. Errors: `InputError` for an unknown reader or argument, naming the nearest, and
    whatever the reader finds wrong.
    """
    given = _parse(spec) if isinstance(spec, str) else dict(spec)
    name = str(given.pop("reader", ""))
    if name not in READERS:
        near = difflib.get_close_matches(name, READERS, n=1, cutoff=0)[0]
        raise InputError(f"there is no reader '{name}': did you mean '{near}'? All are {', '.join(READERS)}")
    read = READERS[name]
    return read(topology=topology, **_arguments(read, given, f"the dataset of reader '{name}'"))


def _parse(text: str) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    if not colon:
        raise InputError(f"the dataset '{text}' names no reader: write it as reader:path, for instance spin:file.npz")
    path, _, options = rest.partition("?")
    return {"reader": name, "path": path, **dict(parse_qsl(options, keep_blank_values=True))}


def _arguments(read: Reader, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is given, checked against the reader's parameters."""
    hints = get_type_hints(read)
    parameters = {name: p for name, p in inspect.signature(read).parameters.items() if name != "topology"}
    kinds = {name: next(iter(get_args(hints[name])), hints[name]) for name in parameters}  # of `str | None`, str
    fields = [
        (name, str | None if kinds[name] is Path else hints[name], field(default=p.default))
        if p.default is not p.empty
        else (name, str)
        for name, p in parameters.items()
    ]
    plain = {name: _plain(value, kinds.get(name)) for name, value in given.items()}
    options = vars(load_config(make_dataclass("Options", fields), plain, where))
    return {name: Path(value) if kinds[name] is Path and value else value for name, value in options.items()}


def _plain(value: Any, kind: Any) -> Any:
    """Numbers out of texts and the reverse, as command lines and YAML confuse them."""
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            return value
    return str(value) if kind in (str, Path) and isinstance(value, int | Path) else value
