"""Two processes, as torchrun and DeepSpeed's launcher start them, train as one does."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint
from deformer_core.data.packed import pack
from tests.data.drawn_people import draw_people
from tests.training.conftest import NETWORK
from training.train import main, parse, prepare

ROOT = Path(__file__).parents[2]
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.fixture(scope="session")
def packed(body: BodyTopology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    list(pack(draw_people(body, 14, 3), folder, body, {}, shard_size=5))
    return folder


@pytest.fixture
def config(packed: Path, tmp_path: Path) -> Path:
    """Everything learns. 7 people of whom 3 to 4 have images: nothing is spread evenly. No dropout, since each process
    draws its own; a constant and small rate, so that rounding stays rounding."""
    run: dict[str, Any] = {
        "model": "deformer", "stage": "decoder", "steps": 2, "batch_size": 7, "threads": 1, "device": "cpu",
        "log_every": 1, "save_minutes": 1e9, "network": NETWORK | {"dropout": 0.0, "image_size": 64},
        "poses": {"fraction": 0.45}, "streams": {"fraction": 0.55, "workers": 0, "sets": [{"path": str(packed)}]},
        "optimizer": {"warmup": 0, "learning_rate": 1e-4, "backbone_rate": 0.3, "schedule": "step", "step_at": []},
        "validation": {"every": 1000, "poses": 5, "streams": [str(packed)]},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    return path


def launch(launcher: list[str], *arguments: object, code: int = 0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    command = [*launcher, "training/train.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def deepspeed() -> list[str]:
    return [str(Path(sys.executable).parent / "deepspeed"), "--num_accelerators", "2", "--master_port", free_port()]


def free_port() -> str:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def alone(config: Path, out: Path, *overrides: str) -> Path:
    assert main(["--config", str(config), "--out", str(out), *overrides]) == 0
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path, tolerance: float) -> None:
    """As logged, each line once. Validation is of discrete figures too: PCK, and heatmaps' highest cells."""
    ours, theirs = lines(one), lines(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in set(a) - {"samples_per_s", "gradient", "validation", "best"}:
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=1e-6), name
        for name, row in a.get("validation", {}).items():
            assert row == pytest.approx(b["validation"][name], rel=0.005, abs=0.005), name


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """All but the shifts of whole bodies, which are taken out again after them: their gradient is rounding alone, of
    which Adam makes whole steps."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if not name.endswith(("correct.displace.2.bias", "recovery.correct.bias")):
            torch.testing.assert_close(value.float(), theirs[name].float(), atol=tolerance, rtol=tolerance, msg=name)


def test_two_processes_are_one(config: Path, tmp_path: Path) -> None:
    whole = alone(config, tmp_path / "one")
    launch(torchrun(), "--config", config, "--out", tmp_path / "two")
    assert_same_run(whole, tmp_path / "two", 1e-5)
    first, ours, theirs = (weights(out) for out in (alone(config, tmp_path / "0", "steps=1"), whole, tmp_path / "two"))
    assert_same_weights(ours, theirs, 1e-5)
    moved = [float((value - first[name]).abs().max()) for name, value in ours.items()]
    assert max(moved) > 5e-5  # in the second step alone: the tolerance is not what makes them equal


def test_accumulation_changes_nothing(config: Path, tmp_path: Path) -> None:
    assert_same_run(alone(config, tmp_path / "one"), alone(config, tmp_path / "three", "accumulation=3"), 1e-5)


def weights(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["engine"]["model"]


@needs_deepspeed
def test_deepspeed_launcher(config: Path, tmp_path: Path) -> None:
    """ZeRO 2, each process in two parts."""
    whole = alone(config, tmp_path / "one", "batch_size=12")
    zero = ("accumulation=2", "deepspeed={zero_optimization: {stage: 2}}")
    out = tmp_path / "two"
    launch(deepspeed(), "--config", config, "--out", out, "--engine", "deepspeed", "batch_size=12", *zero)
    assert_same_run(whole, out, 1e-5)


def stop_and_resume(rank: int, config: str, out: str, port: str) -> None:
    """Four steps under ZeRO 3 as a process of two, with a new start after the second."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    zero = "deepspeed={zero_optimization: {stage: 3}}"
    start = ["--config", config, "validation.every=2", "batch_size=12", zero]
    for arguments in (start, ["--resume", "steps=4"]):
        prepare(parse(["--engine", "deepspeed", "--out", out, *arguments])).run()


@needs_deepspeed
def test_zero_3_resumes_as_if_never_stopped(config: Path, tmp_path: Path) -> None:
    whole = alone(config, tmp_path / "one", "steps=4", "batch_size=12", "validation.every=2")
    out = tmp_path / "two"
    torch.multiprocessing.spawn(stop_and_resume, (str(config), str(out), free_port()), nprocs=2)
    assert_same_run(whole, out, 1e-4)
    assert [path.name for path in (out / "deepspeed").iterdir() if path.is_dir()] == ["step_4"]
    assert load_checkpoint(out / "model.safetensors")
    assert_same_weights(load_file(whole / "model.safetensors"), load_file(out / "model.safetensors"), 1e-3)


def test_too_few_people_for_so_many_parts(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "--out", str(tmp_path / "out"), "accumulation=4"]) == 2
    assert "3 people of streams" in capsys.readouterr().err


@needs_deepspeed
def test_engines_do_not_mix(config: Path, tmp_path: Path) -> None:
    """In a process of its own: DeepSpeed keeps groups of processes that another test may have ended."""
    out = alone(config, tmp_path / "one", "steps=1")
    assert "--engine plain" in launch([sys.executable], "--out", out, "--resume", "--engine", "deepspeed", code=2)
