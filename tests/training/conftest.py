"""A small network, a folder of made-up features and a configuration on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.features import FeatureWriter, weights_digest
from deformer_core.data.keypoint_errors import DrawnErrors
from deformer_core.data.sample import Batch, Sample
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.nn.backbones import BackboneOutput, build_backbone
from deformer_core.training.pose_batches import PoseOnlyBatches

CHANNELS = (24, 24, 128, 1280)  # of movenet_lightning
NETWORK = {"backbone": "movenet_lightning", "dim": 16, "heads": 2, "layers": 1, "ffn": 16, "points": 1,
           "regressor_hidden": 16, "regressor_blocks": 1, "pooled_features": 4}  # fmt: skip


@pytest.fixture(scope="session")
def people(body: BodyTopology) -> Batch:
    """Six people with all labels but meshes."""
    return PoseOnlyBatches(5, 6, PoseSampler(body), ParametricBody(body), DrawnErrors())(0)


def flat_only(batch: Batch) -> Batch:
    """The same people with 2D labels alone."""
    zeros = {key: torch.zeros_like(batch[key]) for key in ("joints", "rotations", "shape", "camera")}
    masks = {key: torch.zeros_like(batch[key]) for key in ("has_3d", "has_mesh", "has_camera")}
    return batch | zeros | masks


@pytest.fixture(scope="session")
def cache_folder(body: BodyTopology, people: Batch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people, four of them with 2D labels alone, on random feature maps of a few cells."""
    folder = tmp_path_factory.mktemp("features")
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn(12, channels, side, side, generator=generator) for channels, side in zip(CHANNELS, (8, 4, 2, 1))
    ]
    keypoints = torch.cat([people["keypoints"]] * 2)
    features = BackboneOutput((maps[0], maps[1], maps[2], maps[3]), maps[3].mean((2, 3)), keypoints)
    samples = [make_sample(people, row % 6, mesh=row < 8) for row in range(12)]
    weights = weights_digest(build_backbone("movenet_lightning"))
    identity = {"weights": weights, "body": body.content_hash, "samples": "test"}
    FeatureWriter(folder, 12, body, identity).append(features, samples)
    return folder


def make_sample(people: Batch, row: int, mesh: bool) -> Sample:
    arrays = {key: np.asarray(people[key][row]) for key in ("box", "uv", "uv_weight")}
    labels = {key: np.asarray(people[key][row]) for key in ("joints", "rotations", "shape", "camera")} if mesh else {}
    return Sample(source=f"test:{row}", **arrays, **labels)


@pytest.fixture
def small_run(cache_folder: Path) -> dict[str, Any]:
    """A configuration of seconds."""
    return {
        "model": "lifting", "stage": "regressor", "steps": 8, "batch_size": 6, "threads": 1, "device": "cpu",
        "log_every": 2, "save_minutes": 1e9, "network": NETWORK, "lifting": {"width": 8, "blocks": 1},
        "poses": {"fraction": 0.5}, "rendered": {"fraction": 0.5, "caches": [str(cache_folder)]},
        "validation": {"every": 1000, "poses": 4}, "optimizer": {"warmup": 2},
    }  # fmt: skip
