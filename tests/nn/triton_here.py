"""Triton as its kernels are tested: compiled where there is a GPU, else interpreted. Import this before the kernels.

Whoever imports Triton first decides: torch's compiler does so too, but in tests, and all of these are imported before.
"""

import os

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed: its kernels are not tested")

from deformer_core.nn import triton_attention_kernels as kernels  # noqa: E402

assert (type(kernels.forward).__name__ == "InterpretedFunction") == (DEVICE == "cpu"), "triton was imported too early"

if DEVICE == "cpu":
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    def _widened(x: TensorHandle) -> TensorHandle:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    _dot = InterpreterBuilder.create_dot
    # The interpreter (3.6 to 3.9) multiplies the bit patterns of bfloat16 as if they were whole numbers.
    InterpreterBuilder.create_dot = lambda self, a, b, *rest: _dot(self, _widened(a), _widened(b), *rest)
