import numpy as np
import pytest

from deformer_core.body.topology import COCO_23
from deformer_core.errors import InputError
from deformer_core.geometry.rotations import rotation_from_axis_angle
from deformer_core.geometry.triangulation import reproject
from deformer_core.training.multiview import JOINTS, measure_views

FOCAL = 1600.0


@pytest.fixture
def scene(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three moments of a person (points of a person's size) before four cameras, seen without error."""
    import torch

    turns = rotation_from_axis_angle(torch.from_numpy(rng.normal(0, 1, (4, 3)))).numpy()
    cameras = np.concatenate([turns, np.array([0, 0, 4.0])[None, :, None].repeat(4, 0)], 2)
    world = rng.normal(0, 0.4, (1, 23, 3)).repeat(3, 0)
    joints = np.einsum("vij,tnj->tvni", turns, world)
    seen = np.stack([reproject(moment[:17], cameras) for moment in world])
    return {"cameras": cameras, "joints": joints, "seen": seen, "scores": np.full((3, 4, 17), 0.9)}


def measure(scene: dict[str, np.ndarray]) -> dict[str, float]:
    return measure_views(**scene, focal=FOCAL, names=COCO_23)


def test_a_perfect_reconstruction(scene: dict[str, np.ndarray]) -> None:
    row = measure(scene)
    assert row["moments"] == 3 and row["views"] == 4
    for figure in ("pa_mpjpe_mm", "cross_view_pa_mpjpe_mm", "mpjpe_mm", "reference_px", "reference_limb_mm"):
        assert row[figure] == pytest.approx(0, abs=1e-6), figure


def test_every_view_in_another_scale_is_forgiven_but_one_wrong_view_is_not(scene: dict[str, np.ndarray]) -> None:
    scene["joints"] = scene["joints"] * np.array([0.9, 1.0, 1.1, 1.2])[None, :, None, None]
    row = measure(scene)
    assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-6) and row["mpjpe_mm"] > 5
    elbow = COCO_23.index("left_elbow")
    scene["joints"][:, 2, elbow] += [0.3, 0, 0]
    changed = measure(scene)
    assert changed["pa_mpjpe_mm"] > 2 and changed["cross_view_pa_mpjpe_mm"] > changed["pa_mpjpe_mm"]


def test_the_reference_tells_its_own_noise(scene: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    scene["seen"] = scene["seen"] + rng.normal(0, 8 / FOCAL, scene["seen"].shape)
    row = measure(scene)
    assert 3 < row["reference_px"] < 15 and row["reference_limb_mm"] > 1


def test_moments_that_cannot_be_triangulated_do_not_count(scene: dict[str, np.ndarray]) -> None:
    scene["scores"][1, 1:, COCO_23.index(JOINTS[0])] = 0.01
    assert measure(scene)["moments"] == 2
    scene["scores"][:] = 0
    with pytest.raises(InputError, match="triangulated"):
        measure(scene)
