"""Pictures: who hides whom, in which colour, where from the side."""

from types import SimpleNamespace

import numpy as np
import pytest

from deformer_core.body.assets import load_body
from deformer_core.view.overlay import PALETTE, draw_overlay, draw_side_view, draw_skeleton, side_bounds

INTRINSICS = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
LEVEL = load_body().levels["coarse"]


def person(number, *translation):
    return SimpleNamespace(
        id=number, vertices=LEVEL.vertices, translation=np.array(translation, np.float32), intrinsics=INTRINSICS
    )


def colored(picture, number):
    """Pixels with the hue of a person, however shaded."""
    tone = PALETTE[number] / np.linalg.norm(PALETTE[number])
    pixels = picture.astype(float)
    return pixels @ tone / np.maximum(np.linalg.norm(pixels, axis=2), 1) > 0.995


@pytest.fixture
def photo():
    return np.full((240, 321, 3), 40, np.uint8)  # odd width: the supersampled picture is twice that


def test_nearer_hides_farther_in_either_order(photo):
    near, far = person(0, 0, 0, 2.5), person(1, 0.05, 0, 4)
    first = draw_overlay(photo, [near, far], LEVEL.faces, alpha=1)
    second = draw_overlay(photo, [far, near], LEVEL.faces, alpha=1)
    np.testing.assert_array_equal(first, second)
    alone = draw_overlay(photo, [near], LEVEL.faces, alpha=1)
    covered = colored(alone, 0)
    assert covered.sum() > 3000
    assert (first[covered] == alone[covered]).all(1).mean() > 0.97  # all but the outline of the one behind


def test_the_photo_stays_and_shines_through(photo):
    before = photo.copy()
    solid = draw_overlay(photo, [person(0, 0, 0, 3)], LEVEL.faces, alpha=1).astype(float)
    half = draw_overlay(photo, [person(0, 0, 0, 3)], LEVEL.faces, alpha=0.5).astype(float)
    np.testing.assert_array_equal(photo, before)
    np.testing.assert_allclose(half, (solid + photo) / 2, atol=1)


def test_bodies_out_of_sight_change_nothing(photo):
    for translation in ((0, 0, -3), (20, 0, 3), (0, 0, 0)):
        drawn = draw_overlay(photo, [person(0, *translation)], LEVEL.faces)
        if translation != (0, 0, 0):
            np.testing.assert_array_equal(drawn, photo)
    np.testing.assert_array_equal(draw_overlay(photo, [], LEVEL.faces), photo)


def test_the_side_view_shows_depth_from_left_to_right():
    picture = draw_side_view([person(0, 0, 0, 2), person(2, 0, 0, 4)], LEVEL.faces)
    columns = [np.nonzero(colored(picture, number))[1].mean() for number in (0, 2)]
    assert columns[1] - columns[0] > 100
    rows = [np.nonzero(colored(picture, number))[0].mean() for number in (0, 2)]
    assert abs(rows[1] - rows[0]) < 3
    assert draw_side_view([], LEVEL.faces).shape == picture.shape


def test_the_side_view_keeps_a_given_frame():
    people = [person(0, 0, 0, 2), person(2, 0, 0, 4)]
    both = draw_side_view(people, LEVEL.faces, bounds=side_bounds(people))
    one = draw_side_view(people[:1], LEVEL.faces, bounds=side_bounds(people))
    np.testing.assert_array_equal(colored(both, 0), colored(one, 0))


def test_the_skeleton_is_drawn_where_the_joints_are(photo):
    keypoints = np.array([[50, 60], [200, 60], [np.nan, 1e9]])
    picture = draw_skeleton(photo, keypoints, [-1, 0, 1], person=1)
    assert colored(picture, 1)[60, 60:190].all()
