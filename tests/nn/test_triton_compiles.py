"""The kernels are for real compilers too, and stay in registers: compiled for a GPU that need not be there."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed: its kernels are not compiled")
def test_all_kernels_compile_for_hopper(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.nn.compile_kernels", "90", "bfloat16", "24"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = {"forward", "join", "backward_rows", "backward_columns", "_forward", "_backward"}
    assert {row["kernel"] for row in found} == names
    assert all(row["stack"] == 0 for row in found), "numbers spill from registers"
