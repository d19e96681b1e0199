"""Formulations of body sparse self-attention, side by side: the same result, another time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deformer_core.body.assets import load_body
from deformer_core.body.scap import Scap, build_scap
from deformer_core.body.scap_cache import cached_scap
from deformer_core.body.scap_tables import TILE
from deformer_core.nn.sparse_attention import EXECUTIONS, dense_masked

HEADS, HEAD_DIM = 8, 32
SIZES = (445, 638, 1252, 6904, 12295)
"""Queries: joints and vertices of SMPL coarse and full (14 + 431, 14 + 6890) and of our three levels (23 + ...)."""
LEVELS = {638: "coarse", 1252: "middle", 12295: "full"}
KERNELS = ("Triton",) if torch.cuda.is_available() else ()
FORMULATIONS = ("dense SDPA", "explicit dense", "FlexAttention", "tiles", *KERNELS)
REFERENCE = FORMULATIONS[0]

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Problem:
    """One size. q, k, v: (1, 8, S, 32), of S slots for `queries` and some registers."""

    queries: int
    scap: Scap
    qkv: tuple[Tensor, Tensor, Tensor]


def make_problem(queries: int, device: str = "cpu") -> Problem:
    """The SCAP of our body at that size, else one like SMPL's. Random inputs, seeded."""
    scap = cached_scap(load_body("anny"), LEVELS[queries]) if queries in LEVELS else tube_scap(14, queries - 14)
    torch.manual_seed(queries)
    q, k, v = torch.randn(3, 1, HEADS, scap.n_slots, HEAD_DIM, device=device)
    return Problem(queries, scap, (q, k, v))


def tube_scap(n_joints: int, n_vertices: int) -> Scap:
    """A SCAP of any size: a tube wound of one row of vertices, each with six neighbours, as meshes of bodies have.

    SMPL's own mesh is not free; links and tiles are about as many (23 links a query on our body, 20 here).
    """
    from scipy.sparse import csr_matrix

    around = max(6, round(math.sqrt(n_vertices) / 2))
    first = np.arange(n_vertices - around - 1)
    faces = np.concatenate([first[:, None] + [0, 1, around + 1], first[:, None] + [0, around + 1, around]])
    moved = np.arange(n_vertices) * n_joints // n_vertices
    links = csr_matrix((np.ones(n_vertices, bool), (moved, np.arange(n_vertices))), shape=(n_joints, n_vertices))
    return build_scap(faces, n_vertices, links)


def formulation(name: str, problem: Problem) -> Attend:
    """The function of q, k, v, its tables ready. Errors: whatever FlexAttention or Triton raises that does not run."""
    scap, device = problem.scap, problem.qkv[0].device
    if name in ("tiles", *KERNELS):
        return EXECUTIONS[name.lower()](scap).to(device)
    mask = torch.from_numpy(scap.dense_mask()).to(device)
    if name == "FlexAttention":
        return _flex(scap, mask)
    bias = torch.zeros(mask.shape, device=device).masked_fill_(~mask, -math.inf)
    if name == "dense SDPA":
        return lambda q, k, v: dense_masked(q, k, v, bias)
    return lambda q, k, v: (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1) @ v


def _flex(scap: Scap, mask: Tensor) -> Attend:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    # Small blocks follow the mesh; GPU kernels have none of 16.
    block = TILE if mask.device.type == "cpu" else 128
    n_blocks = -(-scap.n_slots // block)
    pairs = np.unique(scap.row_indices // block * n_blocks + scap.indices // block)
    counts = np.bincount(pairs // n_blocks, minlength=n_blocks)
    columns = np.zeros((n_blocks, n_blocks), np.int32)
    columns[pairs // n_blocks, np.arange(len(pairs)) - np.repeat(counts.cumsum() - counts, counts)] = pairs % n_blocks
    number, index = (torch.from_numpy(x.astype(np.int32)).to(mask.device)[None, None] for x in (counts, columns))
    blocks = BlockMask.from_kv_blocks(number, index, BLOCK_SIZE=block, mask_mod=lambda b, h, q, k: mask[q, k])
    torch.compiler.reset()  # else a second size is run without being compiled, a hundred times as slow
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


def backward_of(attend: Attend, problem: Problem) -> Callable[[], None]:
    """A run of forward and backward."""
    inputs = [x.clone().requires_grad_() for x in problem.qkv]
    outward = torch.ones_like(problem.qkv[0])

    def run() -> None:
        torch.autograd.grad(attend(*inputs), inputs, outward)

    return run


def forward_of(attend: Attend, problem: Problem) -> Callable[[], None]:
    """A run without gradients."""

    def run() -> None:
        with torch.no_grad():
            attend(*problem.qkv)

    return run


def explicit_bytes(queries: int, backward: bool) -> int:
    """About what the explicit form takes: matrices of all queries against all, four bytes an element."""
    return HEADS * queries * queries * 4 * (5 if backward else 3)


def extra_memory(run: Callable[[], None], device: str = "cpu") -> float | None:
    """MB that a run takes at its peak beyond what was taken before; None where the system does not tell."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - held) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
    except OSError:
        return None
    before = peak_memory() or 0.0
    run()
    return max((peak_memory() or 0.0) - before, 0.0)


def peak_memory() -> float | None:
    """The most memory that this process has had, MB; None where the system (not Linux) does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), None)
