"""A run that is killed for real, at a moment nobody chose, goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from deformer_core.body.topology import BodyTopology
from deformer_core.data.packed import pack
from tests.data.drawn_people import draw_people
from tests.training.conftest import NETWORK
from training.train import main

ROOT = Path(__file__).parents[2]
STEPS = 10


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    if isinstance(value, Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {key: tensor for place, entry in items for key, tensor in flat(entry, f"{name}.{place}").items()}


def test_weights_after_sigkill_and_resume_are_those_of_no_kill(
    body: BodyTopology, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Images by a worker process, poses, dropout, a backbone that learns, two parts a step; on one process."""
    list(pack(draw_people(body, 7, 5), tmp_path / "packed", body, {}, shard_size=3))
    run = {
        "model": "deformer", "stage": "decoder", "steps": STEPS, "batch_size": 4, "accumulation": 2, "threads": 1,
        "device": "cpu", "log_every": 1, "save_minutes": 1e9, "save_every": int(rng.integers(1, 4)),
        "network": NETWORK | {"image_size": 64}, "poses": {"fraction": 0.5},
        "streams": {"fraction": 0.5, "workers": 1, "sets": [{"path": str(tmp_path / "packed")}]},
        "optimizer": {"warmup": 2, "backbone_rate": 0.2}, "validation": {"every": 1000, "poses": 2},
    }  # fmt: skip
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(run))
    assert main(["--config", str(config), "--out", str(tmp_path / "whole"), "streams.workers=0"]) == 0

    out, after = tmp_path / "killed", int(rng.integers(1, STEPS))
    command = [sys.executable, "training/train.py", "--config", str(config), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, deadline = out / "train.log", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and len(log.read_text().splitlines()) >= after:
            time.sleep(rng.uniform(0, 0.2))
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)  # 0: it was done before the signal came

    resumed = ["--resume", "--config", str(config)] if not (out / "checkpoint.pt").exists() else ["--resume"]
    assert main([*resumed, "--out", str(out), "streams.workers=0"]) == 0
    expected, found = (flat(torch.load(folder / "checkpoint.pt")) for folder in (tmp_path / "whole", out))
    assert expected.keys() == found.keys() and len(expected) > 300
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
