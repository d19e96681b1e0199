"""Shared fixtures: printed seeds, the shipped body. One thread a process: the suite runs in several processes."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from deformer_core.body.assets import load_body
from deformer_core.body.topology import BodyTopology

torch.set_num_threads(1)
SHARED = Path(os.environ.get("DEFORMER_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def body() -> BodyTopology:
    return load_body("anny")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of the test's own, the same in every run. DEFORMER_SEED names another; `random` draws fresh ones."""
    given = os.environ.get("DEFORMER_SEED", "")
    if given == "random":
        value = random.SystemRandom().randrange(2**31)
    else:
        value = int(given) if given else zlib.crc32(request.node.nodeid.encode())
    print(f"DEFORMER_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def mocap_folder() -> Path:
    """The recordings beside the checkout, where there are any."""
    folder = SHARED / "data" / "mocap"
    if not folder.is_dir():
        pytest.skip(f"no motion capture at {folder} (set DEFORMER_SHARED)")
    return folder
