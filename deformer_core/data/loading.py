"""Things made ahead by worker processes, in their order, none lost and none twice."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from deformer_core.errors import InputError

T = TypeVar("T")
AHEAD = 2
"""Things that each worker has made or is making."""


class _Numbered(Dataset, Generic[T]):
    """`make` as a dataset; an error meant for the user travels as a value, for a worker would decorate its text."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> T | InputError:
        try:
            return self.make(number)
        except InputError as error:
            return error


def load_ahead(
    make: Callable[[int], T], start: int, stop: int, workers: int, reads: Callable[[int], Iterable[str]]
) -> Generator[T, None, None]:
    """`make(start)`, ..., `make(stop - 1)` in order, made ahead by processes; without workers, when asked for.

    reads: the files that a number is made of, for the error if a process dies. Errors: `InputError`.
    """
    loader: Any = DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        # Spawned: a process forked beside torch's threads hangs.
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    made = iter(loader)
    for number in range(start, stop):
        try:
            result = next(made)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            underway = range(number, min(number + AHEAD * workers, stop))
            files = sorted({name for each in underway for name in reads(each)})
            raise InputError(
                f"a loading process was killed while {', '.join(files)} were read: if memory was short, "
                "lower the number of workers, then resume"
            ) from error
        if isinstance(result, InputError):
            raise result
        yield result


def _start_worker(_: int) -> None:
    import signal

    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, which ends its workers
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
