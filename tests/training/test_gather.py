"""Gathering over real processes that talk by gloo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from deformer_core.training.gather import gather_rows, share

COUNT = 7


def figures(indices: np.ndarray) -> np.ndarray:
    return np.stack([np.sqrt(indices + 0.5), indices * 10.0], 1)


def gather(rank: int, processes: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    mine = share(COUNT)
    everyone = gather_rows(mine, figures(mine))
    uneven = np.arange(rank)  # none in the first process
    some = gather_rows(uneven, figures(uneven))
    np.savez(f"{folder}/{rank}.npz", share=mine, indices=everyone[0], values=everyone[1], some=some[0])
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_get_every_sample_once(processes: int, tmp_path: Path) -> None:
    mp.spawn(gather, (processes, str(tmp_path)), nprocs=processes)
    results = [np.load(tmp_path / f"{rank}.npz") for rank in range(processes)]
    shares = [result["share"] for result in results]
    assert len({len(one) for one in shares}) == 1 and sum(len(one) for one in shares) > COUNT  # padded
    for result in results:
        assert (result["indices"] == np.arange(COUNT)).all()
        assert (result["values"] == figures(np.arange(COUNT))).all()  # bit for bit as one process
        assert (result["some"] == np.arange(processes - 1)).all()


def test_alone(rng: np.random.Generator) -> None:
    assert (share(5) == np.arange(5)).all() and len(share(0)) == 0
    indices = np.array([4, 1, 4, 0])
    values = rng.normal(size=(4, 2))
    values[2] = values[0]
    found, rows = gather_rows(indices, values)
    assert (found == [0, 1, 4]).all() and (rows == values[[3, 1, 0]]).all()
