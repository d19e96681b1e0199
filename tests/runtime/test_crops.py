"""Crops against the image's own formula at the places where they should look."""

import numpy as np
import pytest

from deformer_core.geometry.camera import CropWindow, Intrinsics
from deformer_core.runtime.crops import cut_crop

SIZE = 64


def wavy(x, y):
    """A picture without end that changes slowly: (..., 3) in 0..255 at pixel coordinates (centres at .5)."""
    waves = [np.sin(x / 90) + np.cos(y / 70), np.sin((x + y) / 110), np.cos(x / 80 - y / 60)]
    return np.stack(waves, -1) * 60 + 127


def image(width, height):
    y, x = np.mgrid[:height, :width] + 0.5
    return np.round(wavy(x, y)).astype(np.uint8)


def expected(window, camera):
    """The crop by its definition: crop coordinates to directions to pixels."""
    centers = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    cx, cy, half = window.box(camera)
    x, y = np.meshgrid(camera.fx * (cx + half * centers) + camera.cx, camera.fy * (cy + half * centers) + camera.cy)
    return wavy(x, y), (x > 1) & (y > 1) & (x < camera.width - 1) & (y < camera.height - 1)


@pytest.mark.parametrize("side", [20.3, 64, 127, 129.5, 300, 777, 1500])
@pytest.mark.parametrize("center", [(400, 300), (401.3, 299.6), (30, 590), (795, 8)])
@pytest.mark.parametrize("fy", [700.0, 630.0])
def test_every_pixel_is_where_it_should_be(side, center, fy):
    camera = Intrinsics(700.0, fy, 390.0, 310.0, 801, 603)
    window = CropWindow(*center, side)
    crop = cut_crop(image(801, 603), window, camera, SIZE)
    values, inside = expected(window, camera)
    margin = max(1, side / SIZE)
    inside &= np.roll(inside, 2, 0) & np.roll(inside, -2, 0) & np.roll(inside, 2, 1) & np.roll(inside, -2, 1)
    assert inside.any()
    assert np.abs(crop[inside] - values[inside]).max() < 1.5 + margin / 8


def test_fine_patterns_are_averaged_not_aliased():
    checker = ((np.indices((1024, 1024)).sum(0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, 2)
    camera = Intrinsics.from_fov(1024, 1024)
    crop = cut_crop(checker, CropWindow(512, 512, 700), camera, SIZE)
    assert np.abs(crop.astype(int) - 127).max() < 16


def test_outside_is_black_and_a_window_far_outside_too():
    camera = Intrinsics.from_fov(100, 100)
    white = np.full((100, 100, 3), 255, np.uint8)
    crop = cut_crop(white, CropWindow(0, 50, 50), camera, SIZE)
    assert (crop[:, : SIZE // 2 - 2] == 0).all() and (crop[:, SIZE // 2 + 2 :] == 255).all()
    assert (cut_crop(white, CropWindow(-500, 50, 50), camera, SIZE) == 0).all()


def test_an_image_wider_than_opencv_warps():
    wide = np.zeros((16, 40_000, 3), np.uint8)
    wide[:, 39_000:39_100] = 200
    crop = cut_crop(wide, CropWindow(39_050, 8, 16), Intrinsics.from_fov(40_000, 16), SIZE)
    assert (crop[2:-2] == 200).all()
