"""Compile every kernel that the GPU executions launch, for a GPU that need not be there, and run none.

python -m tests.nn.compile_kernels CAPABILITY TYPE DIM, say 90 bfloat16 32: prints a line of JSON for each kernel with
its registers, the bytes of its stack (what spilled from them) and of its shared memory.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from deformer_core.body import scap_tables
from deformer_core.nn.tile_lists import TileList
from deformer_core.nn.triton_attention import attend_tiles
from deformer_core.nn.triton_sampling import sample_triton
from tests.nn.strips import strip

TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def compile_launch(kernel, capability, arguments, options):
    """The kernel as a launch with these arguments would have it."""
    constants, signature, aligned = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            constants[(i,)], signature[parameter.name] = value, "constexpr"
            continue
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or value % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(compiled):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        command = [str(Path(nvidia.__file__).parent / "bin" / "cuobjdump"), "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", shown)[1]) for name in ("REG", "STACK"))
    return {"registers": registers, "stack": stack, "shared": compiled.metadata.shared}


def main(capability, dtype, dim):
    def compile_only(kernel, *arguments, grid, warmup, **settings):
        options = {"num_warps": settings.pop("num_warps")}
        named = dict(zip(kernel.arg_names, arguments)) | settings
        found = resources(compile_launch(kernel, capability, named, options))
        print(json.dumps({"kernel": kernel.__name__, **options, **found}), flush=True)

    triton.JITFunction.run = compile_only
    scap_tables.LONG = scap_tables.SHORT = 1  # parts, which are joined
    scap = strip(np.random.default_rng(0), 160)
    q, k, v = torch.zeros(3, 2, 2, scap.n_slots, dim, dtype=dtype, requires_grad=True)
    attend_tiles(q, k, v, TileList(scap.tables.rows), TileList(scap.tables.columns)).sum().backward()
    maps = [torch.zeros(2, 2 * dim, size, size, dtype=dtype) for size in (8, 4, 2, 1)]
    places = torch.zeros(2, 2, 4, 2, 2, scap.n_slots, requires_grad=True)
    sample_triton(maps, places, torch.zeros(2, 2, 4, 2, scap.n_slots)).sum().backward()


if __name__ == "__main__":
    main(int(sys.argv[1]), getattr(torch, sys.argv[2]), int(sys.argv[3]))
