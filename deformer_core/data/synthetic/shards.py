"""Rendered samples on disk: files of some hundred samples, each whole or absent, so that rendering can resume.

A shard is an .npz of one array a field (samples along the first axis) with `jpeg`, the images' JPEG files one
after the other, and `jpeg_end`, where each ends, in place of `image`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from deformer_core.data.synthetic.dataset import Record, SyntheticConfig, SyntheticDataset
from deformer_core.errors import InputError

SHARD_SIZE = 500
QUALITY = 95
VERSION = 1
"""Of what a configuration and a seed look like: raised when the renderer draws the same index differently."""

_dataset: SyntheticDataset | None = None
"""A worker process's own."""


def render_shards(
    folder: Path, config: SyntheticConfig, seed: int, start: int, stop: int, processes: int = 2
) -> Iterator[tuple[int, bool]]:
    """Render samples [start, stop) of a seed into shards; those already complete are left alone.

    Yields for each complete shard its number of samples and whether they were rendered now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_recipe(folder, config, seed)
    jobs = []
    for first in range(start, stop, SHARD_SIZE):
        path, last = shard_path(folder, first), min(first + SHARD_SIZE, stop)
        if path.exists() and len(read_shard(path)["index"]) == last - first:
            yield last - first, False
        else:
            jobs.append((path, first, last))
    if not jobs:
        return
    # Spawned, not forked: a process forked beside torch's threads, or an OpenGL context, hangs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(processes, len(jobs)), context, initializer=_start_worker, initargs=(SyntheticDataset(config, seed),)
    ) as pool:
        for count in pool.map(_render_shard, *zip(*jobs, strict=True)):
            yield count, True


def _start_worker(dataset: SyntheticDataset) -> None:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    global _dataset
    _dataset = dataset


def _render_shard(path: Path, start: int, stop: int) -> int:
    assert _dataset is not None
    write_shard(path, _dataset.iterate(start, stop))
    return stop - start


def shard_path(folder: Path, first_index: int) -> Path:
    return folder / f"shard_{first_index:08d}.npz"


def write_shard(path: Path, records: Iterable[Record]) -> None:
    """Write records as one shard, whole or not at all."""
    import cv2

    images, rows = [], []
    for record in records:
        bgr = np.ascontiguousarray(record.pop("image")[..., ::-1])
        images.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].reshape(-1))
        rows.append(record)
    fields: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    fields["jpeg"] = np.concatenate(images)
    fields["jpeg_end"] = np.cumsum([len(image) for image in images])
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **fields)
    os.replace(temporary, path)


def read_shard(path: Path) -> Record:
    """The fields of a shard, images still encoded. Errors: `InputError` for what is not a whole shard."""
    try:
        with np.load(path) as archive:
            fields = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path} is not a readable shard ({error}); delete it and render again.") from error
    if "jpeg_end" not in fields:
        raise InputError(f"{path} holds no rendered samples; name a file of training/render.py.")
    return fields


def decode_images(shard: Record, rows: Sequence[int] | None = None) -> np.ndarray:
    """(N, S, S, 3) uint8 RGB of some rows of a shard, all by default."""
    import cv2

    ends = np.concatenate([[0], shard["jpeg_end"]])
    rows = range(len(ends) - 1) if rows is None else rows
    decoded: list[Any] = [cv2.imdecode(shard["jpeg"][ends[row] : ends[row + 1]], cv2.IMREAD_COLOR) for row in rows]
    return np.stack(decoded)[..., ::-1]


def _check_same_recipe(folder: Path, config: SyntheticConfig, seed: int) -> None:
    """A folder holds the samples of one configuration and seed; a resumed run must not mix two."""
    values = asdict(config)
    if config.clothes is None:  # so that folders of renders from before there were garments go on
        del values["clothes"]
    recipe = sha256(repr((VERSION, sorted(values.items()), seed)).encode()).hexdigest()[:16]
    note = folder / "recipe.txt"
    if not note.exists():
        note.write_text(recipe + "\n")
    elif note.read_text().strip() != recipe:
        raise InputError(f"{folder} holds samples of another configuration or seed; give an empty folder to --out.")
