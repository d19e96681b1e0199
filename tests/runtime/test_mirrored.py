"""Means over people and their mirror images."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.cli import main
from deformer_core.errors import InputError
from deformer_core.geometry.camera import FLIP
from deformer_core.runtime.engines import TorchEngine, make_engine
from deformer_core.runtime.mirrored import MirroredEngine, mirror_rows
from deformer_core.training.predictions import flip_error


@pytest.fixture
def looking(model, rng):
    """An engine, and crops and boxes for it."""
    engine = TorchEngine(model)
    crops = rng.integers(0, 256, (3, engine.image_size, engine.image_size, 3), np.uint8)
    return engine, crops, rng.uniform(-0.3, 0.3, (3, 3)).astype(np.float32) + np.array([0, 0, 0.5], np.float32)


def test_a_mirror_image_has_the_mirrored_body(looking, body):
    engine, crops, box = looking
    both = MirroredEngine(engine, body)
    ours, theirs = both(crops, box), both(np.ascontiguousarray(crops[:, :, ::-1]), box * FLIP)
    for level in body.levels:
        expected = ours[f"vertices_{level}"][:, mirror_rows(body, level)] * FLIP
        np.testing.assert_allclose(theirs[f"vertices_{level}"], expected, atol=1e-5)
    np.testing.assert_allclose(theirs["camera"], ours["camera"] * [1, -1, 1], atol=1e-5)
    assert flip_error(ours["joints"], theirs["joints"], body.joint_mirror).max() < 1e-5
    alone, of_mirrored = engine(crops, box), engine(np.ascontiguousarray(crops[:, :, ::-1]), box * FLIP)
    apart = flip_error(alone["joints"], of_mirrored["joints"], body.joint_mirror)
    assert apart.min() > 1e-4  # which the engine by itself does not have
    other = of_mirrored["joints"][:, list(body.joint_mirror)] * FLIP
    np.testing.assert_allclose(ours["joints"], (alone["joints"] + other) / 2, atol=1e-5)
    np.testing.assert_array_equal(ours["keypoints"], alone["keypoints"])


def test_bodies_that_face_apart_have_no_mean(body):
    """Two people, one of whom an engine sees turned by 50 degrees in the mirror, the other by 70."""
    level = body.levels["full"]
    joints = body.levels["coarse"].joint_regressor.dense() @ body.levels["coarse"].vertices
    angles = np.radians([0, 0, 50, 70])
    turns = np.stack([[[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]] for a in angles])

    def engine(crops, box):
        camera = np.array([[1, 0.1, 0.2]] * 2 + [[2, -0.1, 0.4]] * 2, np.float32)
        bodies = {"vertices_full": level.vertices, "joints": joints}
        return {name: (array @ turns).astype(np.float32) for name, array in bodies.items()} | {"camera": camera}

    engine.image_size, engine.crop_device, engine.description = 8, None, "turning"
    found = MirroredEngine(engine, body)(np.zeros((2, 8, 8, 3), np.uint8), np.ones((2, 3), np.float32))
    np.testing.assert_allclose(found["camera"], [[1.5, 0.1, 0.3], [1, 0.1, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(found["joints"][1], joints, atol=1e-5)
    np.testing.assert_allclose(found["vertices_full"][1], level.vertices, atol=1e-5)
    assert np.abs(found["joints"][0] - joints).max() > 0.02


def test_crops_may_be_tensors(looking, body):
    engine, crops, box = looking
    both = MirroredEngine(engine, body)
    of_arrays, of_tensors = both(crops, box), both(torch.from_numpy(crops), box)
    assert of_arrays.keys() == of_tensors.keys() == engine(crops, box).keys()
    for name, array in of_arrays.items():
        np.testing.assert_array_equal(of_tensors[name], array)


@pytest.mark.parametrize("level", ["coarse", "middle", "full"])
def test_vertices_mirror_as_the_rig_does(body, level, rng):
    """Another way to a mirrored body: its bones' rotations, each taken from the other side, mirrored."""
    posed = ParametricBody(body, (level,))
    turns, _ = np.linalg.qr(np.eye(3) + rng.normal(0, 0.15, (2, len(body.rig.bone_names), 3, 3)))
    turns = (turns * np.sign(np.diagonal(turns, axis1=2, axis2=3))[:, :, None]).astype(np.float32)
    mirrored = turns[:, body.rig.mirror] * (FLIP[:, None] * FLIP)
    shape = torch.zeros(2, body.rig.shape_samples.shape[1])
    ours, theirs = (posed(torch.from_numpy(r), shape)[level].numpy() for r in (turns, mirrored))
    assert np.abs(ours - ours[:, mirror_rows(body, level)] * FLIP).max() > 0.05  # not a symmetric pose
    np.testing.assert_allclose(theirs, ours[:, mirror_rows(body, level)] * FLIP, atol=2e-3)


def test_a_body_without_a_mirror_image_is_told(body, model):
    level = body.levels["coarse"]
    crooked = level.vertices + np.linspace(0, 0.5, len(level.vertices), dtype=np.float32)[:, None]
    bent = replace(body, levels={**body.levels, "coarse": replace(level, vertices=crooked)})
    with pytest.raises(InputError, match="no mirror images"):
        MirroredEngine(TorchEngine(model), bent)


def test_by_name(checkpoint, photo, tmp_path):
    assert "with mirror images" in make_engine(checkpoint, "torch", mirrored=True).description
    cv2.imwrite(str(tmp_path / "photo.png"), photo)
    command = ["run", str(tmp_path / "photo.png"), "--model", str(checkpoint), "--engine", "torch", "--save", "npz"]
    boxes = ["--boxes", "20,20,200,340;240,20,440,340"]
    for folder, options in (("plain", []), ("mean", ["--mirrored"])):
        assert main([*command, *boxes, *options, "--out", str(tmp_path / folder)]) == 0
    plain, mean = (np.load(tmp_path / folder / "photo.npz")["joints"] for folder in ("plain", "mean"))
    assert plain.shape == mean.shape and np.abs(plain - mean).max() > 1e-4
