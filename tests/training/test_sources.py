import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.config import load_config
from deformer_core.data.features import MAPS, FeatureCache
from deformer_core.data.sample import pose_labels
from deformer_core.geometry.camera import project_crop
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import Batches, Mixture, prefetch, read_rows, recorded_errors


def same(a: Batches, b: Batches) -> bool:
    return all(torch.equal(a[part][key], b[part][key]) for part in a for key in a[part])


@pytest.mark.parametrize("stage", ["regressor", "decoder"])
def test_a_batch_depends_on_seed_and_step_alone(small_run: dict[str, Any], body: BodyTopology, stage: str) -> None:
    config = load_config(TrainConfig, small_run | {"model": "deformer", "stage": stage})
    mixture = Mixture(config, body)
    first = [mixture(step) for step in (0, 1, 2)]
    fresh = Mixture(config, body)
    assert same(first[2], fresh(2)) and same(first[0], fresh(0))
    assert not same(first[0], first[1])
    other = Mixture(load_config(TrainConfig, small_run | {"model": "deformer", "stage": stage, "seed": 1}), body)
    assert not same(first[0], other(0))
    assert {part: len(batch["box"]) for part, batch in first[0].items()} == {"poses": 3, "features": 3}
    assert (MAPS[0] in first[0]["features"]) == (stage == "decoder")


def test_labels_of_all_sources_fit_each_other(small_run: dict[str, Any], body: BodyTopology) -> None:
    batches = Mixture(load_config(TrainConfig, small_run), body)(3)
    for part, batch in batches.items():
        true = pose_labels(batch, ParametricBody(body))
        known = true["has_mesh"] > 0
        uv = project_crop(true["joints"], true["camera"], true["box"])
        assert known.any()
        torch.testing.assert_close(uv[known], true["uv"][known], atol=1e-4, rtol=1e-4, msg=part)


def test_recorded_errors_are_used(small_run: dict[str, Any], cache_folder: Path, body: BodyTopology) -> None:
    errors = recorded_errors([FeatureCache(cache_folder, body)])
    uv = errors.uv[:5].astype(np.float32)
    drawn = errors.apply(np.random.default_rng(0), uv)
    assert drawn.shape == (5, 17, 3) and np.abs(drawn[..., :2]).max() <= 1.05


def test_rows_are_read_in_any_order(cache_folder: Path, body: BodyTopology) -> None:
    cache = FeatureCache(cache_folder, body)
    batch = read_rows(cache, np.array([7, 2, 2]), "maps")
    for row, index in enumerate((7, 2, 2)):
        one = read_rows(cache, np.array([index]), "maps")
        assert all(torch.equal(one[key][0], batch[key][row]) for key in batch)


def test_prefetch_keeps_order_and_hands_on_errors() -> None:
    def make(step: int) -> Batches:
        if step == 5:
            raise OSError("disk gone")
        return {"poses": {"step": torch.tensor(step)}}

    found = []
    with pytest.raises(OSError, match="disk gone"):
        for batches in prefetch(make, 2, 9):
            found.append(int(batches["poses"]["step"]))
    assert found == [2, 3, 4]


def test_prefetch_ends_its_thread_when_closed() -> None:
    import threading

    before = threading.active_count()
    batches = prefetch(lambda step: {}, 0, 10**6)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert threading.active_count() == before
