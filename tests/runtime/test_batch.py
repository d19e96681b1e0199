"""Many images in one batch: the same people as one by one, and what happens when memory is short."""

import weakref

import numpy as np
import pytest
import torch

from deformer_core.body.topology import LEVELS
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics
from deformer_core.runtime import batch
from deformer_core.runtime.batch import MAX_CROPS, BatchEstimator, View, split_levels
from deformer_core.runtime.estimator import Estimator

SIZE = 64


class LinearEngine:
    """Outputs that depend on every crop and box, and memory for `capacity` crops."""

    image_size = SIZE
    description = "test"

    def __init__(self, body, capacity=1000, crop_device=None):
        self.body, self.capacity, self.calls, self.crop_device = body, capacity, [], crop_device

    def __call__(self, crops, box):
        assert isinstance(crops, torch.Tensor) == (self.crop_device is not None)
        crops = np.asarray(crops)
        self.calls.append(len(crops))
        if len(crops) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        light = crops.mean((1, 2, 3), keepdims=False)[:, None, None] / 255
        outputs = {f"vertices_{name}": self.body.levels[name].vertices * (1 + light) for name in LEVELS}
        full = self.body.levels["full"]
        outputs["joints"] = full.joint_regressor.apply(outputs["vertices_full"])
        outputs["camera"] = np.stack([0.5 + box[:, 2], box[:, 0], box[:, 1]], 1)
        outputs["keypoints"] = np.broadcast_to(light, (len(crops), 17, 3))  # the brighter, the surer
        return {name: array.astype(np.float32) for name, array in outputs.items()}


@pytest.fixture
def views(rng):
    def view(width, height, n_people):
        corners = rng.uniform(0, 40, (n_people, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 60, (n_people, 2))], 1).astype(np.float32)
        image = rng.integers(0, 255, (height, width, 3), np.uint8)
        lens = Intrinsics.from_fov(width, height, 70)
        return View(image, lens, boxes, np.ones(n_people, np.float32), detected=False)

    return [view(120, 90, 2), view(200, 150, 0), view(160, 160, 3)]


def test_a_batch_equals_its_images_one_by_one(body, views):
    engine = LinearEngine(body)
    together = BatchEstimator(engine, body)(views, ["full"])
    assert engine.calls == [5]
    estimator = Estimator(engine, body)
    for view, people in zip(views, together):
        alone = estimator(view.image, view.intrinsics, view.boxes)
        assert len(alone) == len(people) == len(view.boxes)
        for one, other in zip(alone, people):
            for name in ("box", "vertices", "joints", "translation", "keypoints_2d", "intrinsics"):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_levels_are_stacked_and_split(body, views):
    people = BatchEstimator(LinearEngine(body), body)(views, ["full", "coarse"])[0]
    parts = split_levels(people[0], ["full", "coarse"], body)
    for level in ("full", "coarse"):
        alone = BatchEstimator(LinearEngine(body), body)(views, [level])[0][0]
        assert parts[level].level == level
        np.testing.assert_array_equal(parts[level].vertices, alone.vertices)


def test_crops_are_cut_where_the_engine_wants_them(body, views):
    """On a GPU; torch's CPU device stands in for it."""
    engine = LinearEngine(body, capacity=2, crop_device=torch.device("cpu"))
    ours, theirs = (BatchEstimator(made, body)(views, ["full"]) for made in (engine, LinearEngine(body)))
    assert engine.calls == [5, 2, 2, 1]
    for mine, people in zip(ours, theirs):
        assert len(mine) == len(people)
        for one, other in zip(mine, people):
            np.testing.assert_array_equal(one.box, other.box)
            np.testing.assert_allclose(one.vertices, other.vertices, atol=2e-3)  # a grey level is 1/255


def test_a_batch_too_large_for_the_memory_is_halved_for_good(body, views, caplog):
    engine = LinearEngine(body, capacity=2)
    estimator = BatchEstimator(engine, body)
    expected = BatchEstimator(LinearEngine(body), body)(views, ["coarse"])
    people = estimator(views, ["coarse"])
    assert engine.calls == [5, 2, 2, 1] and estimator.is_reduced
    assert "no memory for 5 people" in caplog.text
    np.testing.assert_array_equal(people[2][1].vertices, expected[2][1].vertices)
    estimator(views, ["coarse"])
    assert engine.calls[4:] == [2, 2, 1]


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_crops_too_many_for_the_memory_halve_the_batch_too(body, views, monkeypatch, caplog, capacity):
    """A GPU that has memory for some crops at once; torch's CPU device stands in for it."""
    cut, cutting = batch.cut_crops, []

    def cut_some(image, windows, *rest):
        cutting.append(len(windows))
        if len(windows) > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cut(image, windows, *rest)

    engine = LinearEngine(body, crop_device=torch.device("cpu"))
    expected = BatchEstimator(engine, body)(views, ["coarse"])
    engine.calls.clear()
    monkeypatch.setattr(batch, "cut_crops", cut_some)
    estimator = BatchEstimator(engine, body)
    for one, other in zip(estimator(views, ["coarse"]), expected):
        assert len(one) == len(other)
        for ours, theirs in zip(one, other):
            np.testing.assert_allclose(ours.vertices, theirs.vertices, atol=2e-3)  # a grey level is 1/255
    # 5 people are at most 3 in one image: all at once, else 2 at a time, else one.
    assert engine.calls == {1: [1] * 5, 2: [2, 2, 1], 3: [5]}[capacity]
    assert estimator.is_reduced == (capacity < 3) and ("no memory for 5 people" in caplog.text) == (capacity < 3)
    cutting.clear()
    estimator(views, ["coarse"])
    assert max(cutting) <= capacity  # for good


def test_memory_of_a_failed_try_is_free_before_the_next(body, views, monkeypatch):
    """What the error's traceback holds would still be taken when memory is given back to the system."""
    given, alive = [], []

    class Noting(LinearEngine):
        def __call__(self, crops, box):
            given.append(weakref.ref(crops))
            return super().__call__(crops, box)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.extend(crops() is not None for crops in given))
    BatchEstimator(Noting(body, capacity=2, crop_device=torch.device("cpu")), body)(views, ["coarse"])
    assert alive == [False]


@pytest.mark.parametrize("crop_device", [None, torch.device("cpu")])
def test_no_memory_for_one_is_an_error(body, views, crop_device):
    with pytest.raises(InputError, match="no memory even for one"):
        BatchEstimator(LinearEngine(body, 0, crop_device), body)(views, ["coarse"])


def test_a_crowd_is_worked_through_in_parts(body):
    engine = LinearEngine(body)
    boxes = np.tile(np.array([[10, 10, 50, 80]], np.float32), (MAX_CROPS + 3, 1))
    image, scores = np.zeros((90, 90, 3), np.uint8), np.ones(len(boxes), np.float32)
    view = View(image, Intrinsics.from_fov(90, 90), boxes, scores, detected=False)
    assert len(BatchEstimator(engine, body)([view], ["coarse"])[0]) == MAX_CROPS + 3
    assert engine.calls == [MAX_CROPS, 3]


def test_nobody_costs_nothing(body, views):
    engine = LinearEngine(body)
    assert BatchEstimator(engine, body)([views[1]], ["full"]) == [[]]
    assert not engine.calls


def test_a_level_that_the_model_lacks(body, views):
    with pytest.raises(InputError, match="no mesh level 'finest'"):
        BatchEstimator(LinearEngine(body), body)(views, ["finest"])


def test_detections_in_which_nobody_is_seen_are_dropped(body):
    """The dark half of a picture has keypoints of score 0; a caller's box there stays, a detector's does not."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 100:] = 200
    boxes = np.array([[20, 20, 60, 60], [130, 20, 170, 60]], np.float32)
    scores = np.array([0.9, 0.6], np.float32)
    estimator = BatchEstimator(LinearEngine(body), body)
    for detected, kept in ((True, [1]), (False, [0, 1])):
        view = View(image, Intrinsics.from_fov(200, 100), boxes, scores, detected)
        people = estimator([view], ["coarse"])[0]
        assert [person.id for person in people] == list(range(len(kept)))
        np.testing.assert_array_equal([person.box for person in people], boxes[kept])
