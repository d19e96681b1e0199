import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import crop
from deformer_core.data.packed import pack
from deformer_core.errors import InputError
from deformer_core.geometry.camera import project_crop
from deformer_core.training.memory import PeakMemory
from deformer_core.training.settings import read_settings
from training import bench
from training.bench import CONFIG, MEASURED, RATIOS, PhotoPieces, measure, only_packed


def test_peak_memory_is_what_is_held_at_most() -> None:
    before = np.ones(5_000_000)  # 40 MB that do not count
    with PeakMemory(torch.device("cpu")) as memory:
        for _ in range(3):
            held = np.ones(12_500_000)  # 100 MB
            held += 1
            del held
    assert before.any() and (95 < memory.peak < 130 or memory.peak != memory.peak)


def test_people_of_the_photo_have_true_labels(body: BodyTopology) -> None:
    people = PhotoPieces(body)
    sample = crop(people[7], body, 64)
    assert sample.image is not None and sample.image.std() > 5
    assert sample.joints is not None and sample.camera is not None
    points = (torch.from_numpy(array)[None] for array in (sample.joints, sample.camera, sample.box))
    np.testing.assert_allclose(project_crop(*points)[0].numpy(), sample.uv, atol=1e-3)
    assert np.abs(sample.uv).max() < 2


def test_ratios_are_of_what_is_measured_and_configurations_can_be() -> None:
    for key, over, under in RATIOS.values():
        kinds = {MEASURED[name][0] for name in (over, under)}
        assert key != "memory_mb" or kinds == {"step"}
    for _, _, overrides in MEASURED.values():
        config, _ = read_settings(CONFIG, [*only_packed(Path("people"), 2), *overrides])
        assert config.counts() == {"poses": 0, "rendered": 0, "real": 0, "streams": config.batch_size}


def test_the_stream_is_measured(body: BodyTopology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers and in this process; the steps take too long for a test."""
    monkeypatch.setattr(bench, "PEOPLE", 8)
    for _ in pack(PhotoPieces(body), tmp_path / "people", body, {}, 4):
        pass
    monkeypatch.setattr(bench, "WARM", 1)
    tiny = ("batch_size=2", "network.backbone=movenet_lightning", "network.dim=16", "network.heads=2")
    row = measure("load", 2, tiny, tmp_path / "people", workers=0)
    assert row["images_per_s"] == pytest.approx(2 / row["seconds"])
    row = measure("step", 1, tiny, tmp_path / "people", workers=0)
    # What the step adds to this process, which may have had it already from another test.
    assert math.isfinite(json.loads(json.dumps(row))["memory_mb"]) and row["images_per_s"] > 0
    with pytest.raises(InputError, match="nowhere"):
        measure("load", 1, tiny, tmp_path / "nowhere", workers=0)
