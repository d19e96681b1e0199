"""From an image to people: known people are found where they are, one batch equals single calls, bad input is told."""

import numpy as np
import pytest
from known_scene import BOXES, INTRINSICS, TRANSLATIONS

from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics
from deformer_core.runtime import Estimator


@pytest.fixture(scope="module")
def estimator(checkpoint):
    return Estimator.from_pretrained(checkpoint, engine="torch", threads=1)


def test_known_people_are_found_where_they_are(estimator, photo, body):
    """The untrained model shows the template, which is what stands there: joints within a fifth of the height."""
    people = estimator(photo, INTRINSICS)
    assert len(people) == 2 and people[0].score >= people[1].score > 0.4
    assert [person.id for person in people] == [0, 1]
    people.sort(key=lambda person: person.translation[0])
    template = body.levels["full"].joint_regressor.apply(body.levels["full"].vertices)
    for person, translation, box in zip(people, TRANSLATIONS, BOXES):
        np.testing.assert_allclose(person.box, box, atol=12)
        assert np.linalg.norm(person.translation[:2] - translation[:2]) < 0.35
        assert 0.6 < person.translation[2] / translation[2] < 1.6
        points = (template + translation) @ INTRINSICS.T
        pixels = points[:, :2] / points[:, 2:]
        assert np.linalg.norm(person.keypoints_2d - pixels, axis=1).mean() < 0.2 * (box[3] - box[1])


def test_arrays_and_frames(estimator, photo, body):
    for level in ("coarse", "middle", "full"):
        for person in estimator(photo, INTRINSICS, BOXES, level):
            assert person.level == level and person.score == 1
            assert person.vertices.shape == body.levels[level].vertices.shape
            assert person.vertices.dtype == person.joints.dtype == person.translation.dtype == np.float32
            np.testing.assert_allclose(person.joints[list(body.hips)].mean(0), 0, atol=1e-5)
            projected = (person.joints + person.translation) @ INTRINSICS.T
            np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], person.keypoints_2d, atol=1e-2)
            np.testing.assert_array_equal(person.intrinsics, INTRINSICS.astype(np.float32))


def test_one_batch_equals_single_calls(estimator, photo):
    boxes = np.array([[40, 47, 236, 330], [260, 63, 431, 314], [-50, -20, 200, 300], [300, 200, 600, 500]])
    together = estimator(photo, INTRINSICS, boxes)
    assert len(together) == 4
    for person, box in zip(together, boxes):
        (alone,) = estimator(photo, INTRINSICS, box[None])
        for name in ("box", "vertices", "joints", "translation", "camera", "keypoints_2d"):
            np.testing.assert_allclose(getattr(person, name), getattr(alone, name), atol=2e-3, err_msg=name)


def test_intrinsics_in_every_form(estimator, photo):
    forms = [INTRINSICS, INTRINSICS.tolist(), Intrinsics(500, 500, 240, 180, 480, 360)]
    people = [estimator(photo, form, BOXES[:1])[0] for form in forms]
    for person in people[1:]:
        np.testing.assert_array_equal(person.vertices, people[0].vertices)
    (default,) = estimator(photo, None, BOXES[:1])
    np.testing.assert_allclose(default.intrinsics[0, 0], 600 / 2 / np.tan(np.radians(27.5)), rtol=1e-5)


def test_distance_grows_with_the_focal_length(estimator, photo):
    """The same picture through a lens of twice the focal length was taken from about twice as far."""
    zoom = INTRINSICS * [[2, 1, 1], [1, 2, 1], [1, 1, 1]]
    near, far = (estimator(photo, intrinsics, BOXES[:1])[0] for intrinsics in (INTRINSICS, zoom))
    assert 1.5 < far.translation[2] / near.translation[2] < 2.6


def test_an_injected_detector(checkpoint, photo):
    """Its boxes are used, the most certain first."""
    estimator = Estimator.from_pretrained(
        checkpoint, engine="torch", detector=lambda image: (BOXES, np.array([0.3, 0.9])), threads=1
    )
    people = estimator(photo)
    assert [person.score for person in people] == pytest.approx([0.9, 0.3])
    np.testing.assert_array_equal([person.box for person in people], BOXES[::-1])


def test_nobody(estimator):
    assert estimator(np.full((200, 300, 3), 90, np.uint8)) == []
    assert estimator(np.full((200, 300, 3), 90, np.uint8), boxes=[]) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image": np.zeros((50, 50), np.uint8)}, r"uint8 \(50, 50\)"),
        ({"image": np.zeros((50, 50, 3), np.float32)}, "float32"),
        ({"image": np.zeros((1, 1, 3), np.uint8)}, "1x1"),
        ({"intrinsics": INTRINSICS * np.nan}, "intrinsics fx=nan"),
        ({"intrinsics": INTRINSICS * [[-1], [1], [1]]}, "fx=-500"),
        ({"intrinsics": INTRINSICS + [[0, 9, 0], [0, 0, 0], [0, 0, 0]]}, "skew"),
        ({"intrinsics": [500, 500, 240, 180]}, r"shape \(4,\)"),
        ({"boxes": [[10, 10, 50, 50], [500, 10, 600, 90]]}, r"box 1 \(500, 10, 600, 90\) lies outside"),
        ({"boxes": [[50, 50, 10, 10]]}, "box 0 .* is empty"),
        ({"boxes": [[10, 10, np.nan, 50]]}, "box 0 .* is empty"),
        ({"boxes": [[10, 10, 50]]}, r"shape \(1, 3\)"),
        ({"boxes": BOXES, "level": "finest"}, "unknown mesh level 'finest'"),
    ],
)
def test_bad_input_is_told(estimator, photo, arguments, words):
    with pytest.raises(InputError, match=words):
        estimator(**{"image": photo, **arguments})
