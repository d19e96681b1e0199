"""What has been reconstructed of a bag so far, on disk, so that a run that was killed goes on where it was.

Reconstruction takes nearly all the time, so that alone is kept: one file a batch, each written whole or not at all.
The rest (ids, smoothing, messages) is done again from these files, by the same code, and so gives the same bag.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.runtime.batch import BatchEstimator, View
from deformer_core.runtime.person import Person
from deformer_ros.pipeline import Model

try:
    import fcntl
except ImportError:  # Windows: nobody watches there that a bag is made once at a time
    fcntl = None  # type: ignore[assignment]

_ARRAYS = ("box", "joints", "vertices", "translation", "camera", "keypoints_2d", "intrinsics")


class EngineError(RuntimeError):
    """The engine cannot go on; nothing is wrong with the images."""


class Recorder(BatchEstimator):
    """A model's estimator that writes down what it finds, batch by batch, and repeats what is written already."""

    def __init__(self, model: Model, folder: Path):
        super().__init__(model.estimator.engine, model.topology)
        self._model, self._folder, self._index = model, folder, 0
        folder.mkdir(parents=True, exist_ok=True)
        self.known = len(list(folder.glob("*.npz")))
        """Batches written by earlier runs."""
        self._next = self._load()

    def detect(self, image: NDArray, score: float = 0.4, max_people: int = 20) -> tuple[NDArray, NDArray]:
        """The model's detector, which need not look where the result is known."""
        if self._next is not None:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return self._model.detector(image, score, max_people)

    def __call__(self, views: Sequence[View], levels: Sequence[str]) -> list[list[Person]]:
        """As `BatchEstimator`. Errors: `EngineError` in place of its own."""
        people = self._next
        if people is not None and len(people) != len(views):
            raise EngineError(f"{self._path} does not fit to this bag: delete {self._folder.parent}")
        if people is None:
            try:
                people = self._model.estimator(views, levels)
            except InputError as error:
                raise EngineError(str(error)) from error
            self._save(people)
        self._index += 1
        self._next = self._load()
        return people

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._index:08d}.npz"

    def _save(self, people: list[list[Person]]) -> None:
        everybody = [person for row in people for person in row]
        arrays: dict[str, NDArray] = {"counts": np.array([len(row) for row in people])}
        if everybody:
            arrays["level"], arrays["score"] = np.array(everybody[0].level), np.array([p.score for p in everybody])
            arrays |= {name: np.stack([getattr(person, name) for person in everybody]) for name in _ARRAYS}
        temporary = self._path.with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, self._path)

    def _load(self) -> list[list[Person]] | None:
        try:
            with np.load(self._path) as stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or lost in a power cut
            return None
        people: list[list[Person]] = []
        first = 0
        for count in arrays["counts"].tolist():
            people.append([_person(arrays, first + index, index) for index in range(count)])
            first += count
        return people


def _person(arrays: dict[str, NDArray], row: int, id: int) -> Person:
    fields = {name: arrays[name][row] for name in _ARRAYS}
    return Person(id=id, score=float(arrays["score"][row]), level=str(arrays["level"]), **fields)


class Workspace:
    """The folder OUT.partial beside the bag OUT that is being made."""

    def __init__(self, target: Path):
        self.target = target
        self.folder = target.with_name(f"{target.name}.partial")
        self.people = self.folder / "people"
        self.bag = self.folder / "bag" / target.name  # a bag's file is named after its folder
        self._run = self.folder / "run.json"

    def check(self, overwrite: bool) -> None:
        """Errors: `InputError` if the target exists and may not be overwritten."""
        if self.target.exists() and not overwrite:
            raise InputError(f"{self.target} exists already: give another name, or --overwrite")

    @contextmanager
    def opened(self, run: dict[str, Any], overwrite: bool) -> Iterator[None]:
        """Take the folder, for this process alone.

        run: all that decides what comes out. overwrite: what another run left here may go.

        Raises:
            InputError: the folder holds the beginning of another run, or is being worked in.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            _take(lock, self.target)
            text = json.dumps(run, indent=1)
            if self._run.exists() and self._run.read_text("utf-8") != text:
                if not overwrite:
                    raise InputError(
                        f"{self.folder} holds the beginning of another run, of another bag or with other options: "
                        "use those again to go on with it, or --overwrite to start anew"
                    )
                shutil.rmtree(self.people, ignore_errors=True)
            with replace_file(self._run) as temporary:
                temporary.write_text(text, "utf-8")
            shutil.rmtree(self.bag.parent, ignore_errors=True)
            self.bag.parent.mkdir()
            yield

    def finish(self) -> None:
        """Put the bag in its place and the rest away."""
        if self.target.exists():
            os.replace(self.target, self.folder / "replaced")
        os.replace(self.bag, self.target)
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _take(lock: Any, target: Path) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{target} is being written by another process: wait for it, or end it") from error


def fingerprint(paths: Sequence[Path]) -> list[list[Any]]:
    """Name, size and time of change of files: whether they are still the same."""
    entries = []
    for path in paths:
        with suppress(OSError):
            state = path.stat()
            entries.append([path.name, state.st_size, state.st_mtime_ns])
    return entries
