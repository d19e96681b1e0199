"""A fixed sparse matrix as a module: upsampling of meshes and of features, regression of joints."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.body.topology import RowBlend


class SparseRows(NamedTuple):
    """A sparse matrix in the form of `F.embedding_bag`."""

    columns: Tensor
    """(nnz,) int64."""
    weights: Tensor
    """(nnz,)"""
    starts: Tensor
    """(N,) int64, where each row starts."""

    def multiply(self, values: Tensor) -> Tensor:
        """(B, M, C) to (B, N, C): one fused gather and sum over all of the batch."""
        batch, _, channels = values.shape
        table = values.transpose(0, 1).flatten(1)
        blended = F.embedding_bag(
            self.columns, table, self.starts, mode="sum", per_sample_weights=self.weights.to(values.dtype)
        )
        return blended.unflatten(1, (batch, channels)).transpose(0, 1)


class _Multiply(torch.autograd.Function):
    """The matrix times values; its gradient is the transposed matrix times theirs.

    Autograd's own gradient of a gather adds rows one at a time and takes ten times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, *matrices: Tensor) -> Tensor:
        ctx.transposed = matrices[3:]
        return SparseRows(*matrices[:3]).multiply(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return SparseRows(*ctx.transposed).multiply(gradients[0]), *(None,) * 6


class Blend(nn.Module):
    """A `RowBlend` that moves with the model and is not in its state dict."""

    indices: Tensor
    weights: Tensor

    def __init__(self, blend: RowBlend) -> None:
        super().__init__()
        used = blend.weights != 0
        rows, columns, weights = (
            np.nonzero(used)[0],
            blend.indices[used].astype(np.int64),
            blend.weights[used],
        )
        self._constants("rows", rows, columns, weights, len(blend.indices))
        order = np.argsort(columns, kind="stable")
        self._constants("transposed", columns[order], rows[order], weights[order], blend.n_input)
        # As given, for exported graphs, which have no fused operator for this.
        self.register_buffer("indices", torch.from_numpy(blend.indices).long(), persistent=False)
        self.register_buffer("weights", torch.from_numpy(blend.weights), persistent=False)

    def _constants(
        self, name: str, rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, n: int
    ) -> None:
        starts = np.searchsorted(rows, np.arange(n))
        for field, value in SparseRows(*map(torch.from_numpy, (columns, weights, starts)))._asdict().items():
            self.register_buffer(f"{name}_{field}", value, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """(B, n_input, C) to (B, N, C)."""
        if torch.compiler.is_exporting():
            # Weights repeated for every channel and summed over the outer axis: long rows, which CPUs add fastest.
            columns, weights = self.indices.T, self.weights.T[..., None].expand(-1, -1, values.shape[2]).contiguous()
            return (values.index_select(1, columns.flatten()).unflatten(1, columns.shape) * weights).sum(1)
        matrices = [
            getattr(self, f"{name}_{f}") for name in ("rows", "transposed") for f in SparseRows._fields
        ]
        return _Multiply.apply(values, *matrices)
