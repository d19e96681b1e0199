from dataclasses import fields

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.augment import jitter_box, jitter_window, mirror_sample, perturb_keypoints, reframe
from deformer_core.data.keypoint_errors import DrawnErrors, KeypointErrors
from deformer_core.data.sample import Batch, Sample, collate, concatenate, pose_labels
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.geometry.camera import CropWindow, camera_translation, crop_rotation, project_crop
from deformer_core.training.pose_batches import PoseOnlyBatches


@pytest.fixture
def batch(body: BodyTopology, seed: int) -> Batch:
    return PoseOnlyBatches(seed, 5, PoseSampler(body), ParametricBody(body), DrawnErrors())(0)


@pytest.fixture
def sample(batch: Batch, rng: np.random.Generator) -> Sample:
    keys = ("box", "uv", "uv_weight", "joints", "rotations", "shape", "camera", "keypoints")
    image = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Sample(source="s", clean=True, image=image, **{key: batch[key][0].numpy() for key in keys})


def test_mirrored_twice_is_the_same(sample: Sample, body: BodyTopology) -> None:
    twice = mirror_sample(mirror_sample(sample, body), body)
    for field in fields(Sample):
        value = getattr(sample, field.name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(twice, field.name), err_msg=field.name)


def test_mirrored_labels_fit_each_other(sample: Sample, body: BodyTopology) -> None:
    mirrored = mirror_sample(sample, body)
    batch = collate([sample, mirrored], body)
    uv = project_crop(batch["joints"], batch["camera"], batch["box"])
    torch.testing.assert_close(uv, batch["uv"], atol=1e-4, rtol=1e-4)
    posed = pose_labels(batch, ParametricBody(body))["joints"]
    assert float((posed - batch["joints"]).norm(dim=-1).max()) < 0.004  # the body itself is symmetric to millimetres
    left, right = body.joint_names.index("left_wrist"), body.joint_names.index("right_wrist")
    assert mirrored.joints is not None and sample.joints is not None and mirrored.image is not None
    np.testing.assert_allclose(mirrored.joints[left], sample.joints[right] * [-1, 1, 1])
    np.testing.assert_array_equal(mirrored.image[:, 0], sample.image[:, -1])  # type: ignore[index]


def test_mirroring_leaves_absent_labels_absent(sample: Sample, body: BodyTopology) -> None:
    flat = mirror_sample(Sample("s", sample.box, sample.uv, sample.uv_weight), body)
    assert all(getattr(flat, key) is None for key in ("image", "joints", "rotations", "camera", "keypoints"))


def test_reframing_moves_no_one(batch: Batch, body: BodyTopology, rng: np.random.Generator) -> None:
    moved = reframe(batch, jitter_box(rng, batch["box"], 0.3, 0.1))
    assert (moved["box"] != batch["box"]).any(1).all()
    posed = pose_labels(moved, ParametricBody(body))
    torch.testing.assert_close(posed["joints"], reframe(batch, moved["box"])["joints"], atol=1e-5, rtol=0)
    uv = project_crop(posed["joints"], moved["camera"], moved["box"])
    torch.testing.assert_close(uv, moved["uv"], atol=2e-4, rtol=1e-4)

    def in_full_camera(labels: Batch) -> torch.Tensor:
        points = labels["joints"] + camera_translation(labels["camera"], labels["box"])[:, None]
        return points @ crop_rotation(labels["box"]).transpose(1, 2)

    torch.testing.assert_close(in_full_camera(moved), in_full_camera(batch), atol=1e-4, rtol=1e-5)


def test_reframing_people_without_3d(batch: Batch) -> None:
    zeros = {key: torch.zeros_like(batch[key]) for key in ("joints", "rotations", "camera", "has_camera", "has_mesh")}
    moved = reframe(batch | zeros, batch["box"] * 1.1)
    assert all(torch.isfinite(value).all() for value in moved.values())
    assert (moved["camera"] == 0).all()


def test_the_same_generator_gives_the_same_changes(batch: Batch, seed: int) -> None:
    def change() -> tuple[torch.Tensor, torch.Tensor, CropWindow]:
        rng = np.random.default_rng(seed)
        noisy = perturb_keypoints(rng, batch["keypoints"], 0.02, 0.1)
        return noisy, jitter_box(rng, batch["box"], 0.2, 0.1), jitter_window(rng, CropWindow(50, 60, 70), 0.2, 0.1)

    a, b = change(), change()
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]


def test_perturbing_does_what_it_says(rng: np.random.Generator) -> None:
    keypoints = torch.full((500, 17, 3), 0.5)
    noisy = perturb_keypoints(rng, keypoints, 0.05, 0.2)
    assert float((noisy[..., :2] - 0.5).std()) == pytest.approx(0.05, rel=0.05)
    assert float((noisy[..., 2] < 0.1).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.equal(perturb_keypoints(rng, keypoints, 0.0, 0.0), keypoints)


def test_jittered_windows_keep_to_their_range(rng: np.random.Generator) -> None:
    windows = [jitter_window(rng, CropWindow(100, 100, 80), 0.2, 0.05) for _ in range(300)]
    sides = np.array([window.side for window in windows]) / 80
    assert sides.min() >= 1 / 1.2 and sides.max() <= 1.2 and np.ptp(sides) > 0.2
    assert np.std([window.center_x for window in windows]) == pytest.approx(4, rel=0.2)


def test_errors_are_those_of_a_similar_pose(batch: Batch, rng: np.random.Generator) -> None:
    uv = batch["uv"][:, :17].numpy()
    keypoints = np.concatenate([uv + 0.02 * np.arange(5)[:, None, None], np.full((5, 17, 1), 0.5)], -1).astype(
        np.float32
    )
    errors = KeypointErrors(keypoints, uv, np.ones((5, 17)))
    drawn = errors.apply(rng, uv)
    inside = np.abs(uv + 0.1).max(-1) < 0.9
    moved = (drawn[..., :2] - uv).mean(-1)
    for row in range(5):
        if inside[row].any():
            noise = 0.01 / np.sqrt(2 * inside[row].sum())
            assert moved[row][inside[row]].mean() == pytest.approx(0.02 * row, abs=6 * noise)


def test_missing_labels_take_a_known_error(rng: np.random.Generator) -> None:
    uv = rng.uniform(-0.5, 0.5, (40, 17, 2)).astype(np.float32)
    keypoints = np.concatenate([uv + 0.1, np.full((40, 17, 1), 0.7)], -1).astype(np.float32)
    labelled = (rng.random((40, 17)) < 0.5).astype(np.float32)
    labelled[0] = 1
    errors = KeypointErrors(keypoints, np.where(labelled[..., None] > 0, uv, 9.0), labelled)
    np.testing.assert_allclose(errors.residual[..., :2], 0.1, atol=1e-5)
    np.testing.assert_allclose(errors.uv, uv, atol=1e-5)


def test_concatenated_batches(batch: Batch) -> None:
    both = concatenate([batch, batch])
    assert both["uv"].shape == (10, *batch["uv"].shape[1:]) and torch.equal(both["uv"][5:], batch["uv"])
