import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint, save_checkpoint
from deformer_core.config import load_config
from deformer_core.data.features import FeatureCache
from deformer_core.data.keypoints2d import KeypointPhotos, read_people
from deformer_core.errors import InputError
from deformer_core.nn.backbones import build_backbone
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.training.settings import CachedConfig, TrainConfig
from deformer_core.training.task import check_features
from tests.training.conftest import NETWORK
from training import cache_features
from training.cache_features import cache, choose_runner, disagreement, main


@pytest.fixture
def options(tmp_path: Path, rng: np.random.Generator) -> argparse.Namespace:
    """Three people on one noisy photo."""
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 255, (120, 160, 3), dtype=np.uint8))
    keypoints = [[60.0 + k, 50.0, 2] for k in range(17)]
    people = [{"bbox_xywh": [20 + 10 * i, 10, 60, 80], "keypoints": keypoints, "usable": True} for i in range(3)]
    photo = {"file": "a.png", "our_split": "train", "people": people}
    (tmp_path / "people.json").write_text(json.dumps([photo]))
    return argparse.Namespace(
        coco=tmp_path / "people.json", rendered=None, split="train", views=1, out=tmp_path / "features", count=None,
        backbone="movenet_lightning", runner="torch", batch_size=2,
    )  # fmt: skip


def test_features_are_the_backbones(
    options: argparse.Namespace, body: BodyTopology, capsys: pytest.CaptureFixture[str]
) -> None:
    cache(options)
    cache(options)
    assert "3 of 3 done" in capsys.readouterr().out
    found = FeatureCache(options.out, body)
    assert len(found) == 3
    sample = KeypointPhotos(read_people(options.coco, "train"), body, 192)[2]
    backbone = build_backbone("movenet_lightning").eval()
    assert sample.image is not None
    with torch.no_grad():
        expected = backbone(torch.from_numpy(sample.image).permute(2, 0, 1)[None].float())
    assert disagreement(found.features(np.array([2])), expected) < 1e-3
    torch.testing.assert_close(found.labels(np.array([2]))["keypoints"], expected.keypoints, atol=1e-4, rtol=0)


def test_features_of_a_trained_backbone(options: argparse.Namespace, body: BodyTopology, tmp_path: Path) -> None:
    """A checkpoint's backbone in place of the published one; training refuses features of any other than its own."""
    model = DeFormer.from_config(load_config(DeFormerConfig, NETWORK))
    with torch.no_grad():
        model.backbone.encoder.last.bias += 0.25
    save_checkpoint(tmp_path / "trained.safetensors", model, {}, {})
    options.backbone = str(tmp_path / "trained.safetensors")
    cache(options)
    config = TrainConfig(stage="decoder", network=model.config, real=CachedConfig(1.0, (str(options.out),)))
    check_features(config, load_checkpoint(options.backbone))
    with pytest.raises(InputError, match="of another backbone"):
        check_features(config, DeFormer.from_config(model.config))
    options.backbone = "movenet_lightning"
    with pytest.raises(InputError, match="another weights"):
        cache(options)


def test_a_runner_that_disagrees_is_not_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_backbone("movenet_lightning").eval()
    images = torch.randint(0, 255, (1, 64, 64, 3), dtype=torch.uint8)
    build = cache_features.build_runner

    def build_wrong(name: str, *arguments: Any) -> cache_features.Runner:
        run = build("torch", *arguments)
        if name == "torch":
            return run
        return lambda images: run(images)._replace(pooled=1.1 * run(images).pooled)

    monkeypatch.setattr(cache_features, "RUNNERS", ("fast", "torch"))
    monkeypatch.setattr(cache_features, "build_runner", build_wrong)
    assert choose_runner("auto", backbone, images)[0] == "torch"
    assert "fast differs from torch by 1.0e-01" in capsys.readouterr().err


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rendered", str(tmp_path), "--out", str(tmp_path / "o"), "--backbone", "movenet_lightning"]) == 2
    assert "no shards" in capsys.readouterr().err
