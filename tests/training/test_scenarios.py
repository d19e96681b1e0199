import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Sample
from deformer_core.training.scenarios import facing, low_light, scenarios, thigh_bend


@pytest.fixture
def standing(body: BodyTopology) -> np.ndarray:
    """(1, 23, 3): the template faces the camera."""
    mesh = body.levels["full"]
    return mesh.joint_regressor.apply(mesh.vertices)[None]


def turned(joints: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return joints @ np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])


@pytest.mark.parametrize("degrees", [0, 50, 90, 140, 180, -130])
def test_facing_is_the_angle_by_which_a_body_is_turned_away(
    standing: np.ndarray, body: BodyTopology, degrees: float
) -> None:
    tilt = float(facing(standing, body.joint_names)[0])
    assert tilt < 15  # the template's trunk leans a little
    assert facing(turned(standing, degrees), body.joint_names)[0] == pytest.approx(abs(degrees), abs=tilt + 1e-3)


def test_thighs_bend_from_the_trunk(standing: np.ndarray, body: BodyTopology) -> None:
    names = body.joint_names
    straight = thigh_bend(standing, names)
    assert straight.max() < 25  # the template's legs are spread
    sitting = standing.copy()
    for side in ("left", "right"):
        hip, knee = names.index(f"{side}_hip"), names.index(f"{side}_knee")
        sitting[:, knee] = sitting[:, hip] + [0, 0.05, -0.4]  # towards the camera
    assert thigh_bend(sitting, names).min() > 70
    np.testing.assert_allclose(thigh_bend(turned(sitting, 77), names), thigh_bend(sitting, names), atol=1e-3)


def test_masks_follow_the_labels(standing: np.ndarray, body: BodyTopology) -> None:
    def sample(joints: np.ndarray, **known: int) -> Sample:
        return Sample("s", np.zeros(3), np.zeros((23, 2)), np.ones(23), joints=joints[0], **known)

    away = turned(standing, 170)
    samples = [sample(standing, truncated=True, companions=0), sample(away, truncated=False, companions=2)]
    masks = {name: mask.tolist() for name, mask in scenarios(samples, body.joint_names).items()}
    assert masks == {
        "truncated": [True, False],
        "back_view": [False, True],
        "sitting": [False, False],
        "crowded": [False, True],
    }
    assert "crowded" not in scenarios([sample(standing), *samples], body.joint_names)


def test_low_light_is_darker_and_noisier_and_keeps_the_picture(rng: np.random.Generator) -> None:
    ramp = np.tile(np.linspace(20, 235, 256, dtype=np.float32)[:, None, None], (1, 256, 3))
    ramp[..., 0] *= 0.8
    image = ramp.astype(np.uint8)
    dark = low_light(image, rng)
    assert dark.dtype == np.uint8 and dark.shape == image.shape
    assert 0.4 < dark.mean() / image.mean() < 0.8
    rows = dark.mean((1, 2))
    assert np.corrcoef(rows, image.mean((1, 2)))[0, 1] > 0.99
    assert dark.std((1,)).mean() > 3
