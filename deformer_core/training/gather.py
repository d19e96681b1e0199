"""Figures of every person once, however many processes measured them and however the sampler padded their shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(indices: NDArray[np.integer], values: NDArray[Any]) -> tuple[NDArray[np.integer], NDArray[Any]]:
    """All processes' rows in the order of their sample, each sample once.

    indices: (n,) which sample of the whole set each row is of; values: (n, ...) its figures. n may differ between
    processes and may be 0. A sample that several rows are of (a sampler repeats some to give every process as many)
    keeps the first. Returns ((N,), (N, ...)), the same in every process, so that a mean over N does not depend on
    their number. A collective call: every process must make it. Without a process group, the process's own rows.
    """
    indices, values = np.asarray(indices), np.asarray(values)
    parts: list[Any] = [(indices, values)]
    if is_distributed():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, (indices, values))
    filled = [part for part in parts if len(part[0])] or parts[:1]
    every = np.concatenate([part[0] for part in filled])
    rows = np.concatenate([part[1] for part in filled])
    unique, first = np.unique(every, return_index=True)
    return unique, rows[first]


def share(count: int) -> NDArray[np.integer]:
    """The samples that this process measures: every n-th, the last processes' shares padded from the start."""
    if not is_distributed():
        return np.arange(count)
    processes = dist.get_world_size()
    padded = -(-count // processes) * processes
    return (np.arange(dist.get_rank(), padded, processes) % count) if count else np.arange(0)
