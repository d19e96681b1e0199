"""Training on images: the backbone runs within the task, and learns if it is told to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint, save_checkpoint
from deformer_core.config import load_config
from deformer_core.data.packed import pack
from deformer_core.data.sample import concatenate
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.training.engine import parameter_groups
from deformer_core.training.losses import DeFormerLoss
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import Mixture, Shares
from deformer_core.training.task import TrainingTask, build_model, load_weights
from tests.data.drawn_people import draw_people
from tests.training.conftest import NETWORK
from training.train import parse, prepare


@pytest.fixture(scope="module")
def packed(body: BodyTopology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    list(pack(draw_people(body, 8, 11), folder, body, {}, shard_size=3))
    return folder


@pytest.fixture
def run(packed: Path) -> dict[str, Any]:
    return {
        "model": "deformer", "stage": "decoder", "steps": 3, "batch_size": 5, "threads": 1, "device": "cpu",
        "log_every": 1, "save_minutes": 1e9, "network": NETWORK | {"image_size": 64}, "poses": {"fraction": 0.4},
        "streams": {"fraction": 0.6, "workers": 0, "sets": [{"path": str(packed)}]},
        "validation": {"every": 1000, "poses": 0, "streams": [str(packed)]},
    }  # fmt: skip


def make(run: dict[str, Any], body: BodyTopology, **optimizer: Any) -> tuple[TrainingTask, Mixture]:
    config = load_config(TrainConfig, run | {"optimizer": optimizer})
    task = TrainingTask(config, build_model(config, body), DeFormerLoss(config.loss, body))
    parameter_groups(task, config.optimizer)
    return task.train(), Mixture(config, body, 64)  # type: ignore[return-value]


@pytest.mark.parametrize("stage", ["regressor", "decoder"])
@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_backbone_learns_if_told_to(run: dict[str, Any], body: BodyTopology, stage: str, rate: float) -> None:
    task, mixture = make(run | {"stage": stage}, body, backbone_rate=rate)
    losses = task(mixture(0))
    assert ("backbone_keypoints" in losses) == (rate > 0)
    losses["total"].backward()
    assert isinstance(task.model, DeFormer)
    learns = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in task.model.backbone.parameters()]
    assert all(learns) if rate else not any(learns)
    decoder = [p.grad is not None for p in task.model.decoder.parameters()]
    assert any(decoder) == (stage == "decoder")


def test_statistics_stay_as_they_are_pretrained(run: dict[str, Any], body: BodyTopology) -> None:
    for wanted in (False, True):
        task, _ = make(run, body, backbone_rate=0.1, backbone_statistics=wanted)
        assert isinstance(task.model, DeFormer)
        assert task.model.backbone.training == wanted and task.model.decoder.training
        assert not task.eval().model.training


def test_half_precision(run: dict[str, Any], body: BodyTopology) -> None:
    task, mixture = make(run | {"precision": "bfloat16"}, body, backbone_rate=0.1)
    full, _ = make(run, body, backbone_rate=0.1)
    full.load_state_dict(task.state_dict())
    batches = mixture(0)
    torch.manual_seed(0)
    rough = task(batches)["total"]
    torch.manual_seed(0)
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(full(batches)["total"].detach()), rel=0.1)


def test_parts_of_all_processes_make_the_step(run: dict[str, Any], body: BodyTopology) -> None:
    config = load_config(TrainConfig, run | {"batch_size": 12})
    whole = [Mixture(config, body, 64)(step) for step in range(3)]
    turns = [list(Mixture(config, body, 64, Shares(rank, 2, 2)).turns(1, 3)) for rank in (0, 1)]
    assert [len(own) for own in turns] == [4, 4]
    for step in (1, 2):
        first = 2 * (step - 1)
        parts = [*turns[0][first : first + 2], *turns[1][first : first + 2]]
        for kind in ("poses", "images"):
            joined = concatenate(part[kind] for part in parts)
            assert all(torch.equal(joined[name], value) for name, value in whole[step][kind].items())


def test_training_on_images_lowers_the_losses(run: dict[str, Any], tmp_path: Path) -> None:
    arguments = [
        "steps=30",
        "optimizer.backbone_rate=0.3",
        "optimizer.warmup=2",
        "streams.fraction=1",
        "poses.fraction=0",
    ]
    path = tmp_path / "run.json"  # JSON is YAML
    path.write_text(json.dumps(run))
    out = tmp_path / "out"
    prepare(parse(["--config", str(path), "--out", str(out), *arguments])).run()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name in ("total", "backbone_keypoints"):
        values = [line[name] for line in lines if name in line]
        assert sum(values[-6:]) < 0.8 * sum(values[:6]), name
    assert lines[-1]["validation"][Path(run["validation"]["streams"][0]).name]["keypoints_pck_0_1"] >= 0


def test_a_run_starts_from_all_weights_of_the_same_network_however_it_executes(
    body: BodyTopology, tmp_path: Path, seed: int
) -> None:
    """Another execution of the same network takes everything; another network the parts that are the same."""
    config = load_config(DeFormerConfig, NETWORK)
    source = DeFormer(config, body)
    save_checkpoint(tmp_path / "start.safetensors", source, {}, {})
    for changes, kept in (
        ({"attention": "tiles", "sampling": "gather"}, ("regressor", "backbone", "decoder", "recovery")),
        ({"volume_width": 8}, ("regressor", "backbone", "decoder", "recovery")),
        ({"layers": 2}, ("regressor", "backbone")),
    ):
        model = DeFormer(replace(config, **changes), body)
        told = load_weights(model, tmp_path / "start.safetensors")
        assert told.startswith("all weights") == (model.config == config)
        for name, value in load_checkpoint(tmp_path / "start.safetensors").state_dict().items():
            if name.startswith(kept):
                assert torch.equal(model.state_dict()[name], value), name
