"""A small model with random weights on the shipped backbone, and a photo of two people whose places are known."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from known_scene import INTRINSICS, TRANSLATIONS

from deformer_core.checkpoint import save_checkpoint
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.view.overlay import draw_overlay

SMALL = DeFormerConfig(
    backbone="movenet_lightning", layers=1, dim=32, heads=2, ffn=32, points=1, regressor_hidden=64, volume_width=8
)


@pytest.fixture(scope="session")
def model():
    """Untrained, it shows the template where the backbone's keypoints are."""
    print("torch.manual_seed(0)")
    torch.manual_seed(0)
    return DeFormer.from_config(SMALL).eval()


@pytest.fixture(scope="session")
def checkpoint(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    save_checkpoint(path, model, metrics={"pa_mpjpe_mm": 123.0}, provenance={"made by": "tests"})
    return path


@pytest.fixture(scope="session")
def photo(body) -> np.ndarray:
    """(360, 480, 3) RGB: the template body twice, before grey."""
    level = body.levels["full"]
    people = [
        SimpleNamespace(id=index, vertices=level.vertices, translation=translation, intrinsics=INTRINSICS)
        for index, translation in enumerate(TRANSLATIONS)
    ]
    return draw_overlay(np.full((360, 480, 3), 128, np.uint8), people, level.faces, alpha=1)
