"""The processes of one training run, started by torchrun or DeepSpeed's launcher; or one, started by hand."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    rank: int
    """Of this one; 0 alone writes what is not its own."""
    count: int
    device: torch.device


def join_processes(device: str) -> Processes:
    """Meet the other processes, if the launcher's environment says that there are any.

    device: "auto", "cpu" or "cuda"; with CUDA, each process takes the card of its number on its machine.
    """
    kind = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    own = torch.device(kind)
    if kind == "cuda" and "LOCAL_RANK" in os.environ:
        own = torch.device(kind, int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    if not dist.is_initialized():
        return Processes(0, 1, own)
    return Processes(dist.get_rank(), dist.get_world_size(), own)


def leave_processes() -> None:
    """To be called at the end, so that nobody waits for this process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(values: Tensor) -> Tensor:
    """The same in every process, in place. A collective call: every process must make it."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
