"""Crops by matrices in torch against OpenCV's, tried on torch's CPU device, and engines that are given them."""

import cv2
import numpy as np
import pytest
import torch

from deformer_core.geometry.camera import CropWindow, Intrinsics
from deformer_core.runtime.crops import cut_crop
from deformer_core.runtime.device_crops import AT_ONCE, cut_crops, on_device

CPU = torch.device("cpu")


def wavy(width, height):
    """(H, W, 3) uint8 that changes slowly."""
    y, x = np.mgrid[:height, :width] + 0.5
    waves = [np.sin(x / 30) + np.cos(y / 25), np.sin((x + y) / 40), np.cos(x / 28 - y / 22)]
    return np.round(np.stack(waves, -1) * 60 + 127).astype(np.uint8)


def random_windows(rng, width, height, count):
    """Of all sizes, from a few pixels to far more than the image; some reach out of it, some lie outside."""
    centers = rng.uniform(-0.4, 1.4, (count, 2)) * (width, height)
    return [CropWindow(x, y, float(np.exp(rng.uniform(1.5, 8.5)))) for x, y in centers.tolist()]


def apart(image, windows, lens, size):
    """Differences from OpenCV's crops, (N, size, size, 3)."""
    crops = cut_crops(image, windows, lens, size, CPU)
    assert crops.dtype == torch.uint8 and crops.is_contiguous()
    expected = np.stack([cut_crop(image, window, lens, size) for window in windows])
    return np.abs(crops.numpy().astype(int) - expected)


@pytest.mark.parametrize("size", [48, 64, 96, 192, 256])
def test_they_are_opencvs(rng, size):
    width, height = rng.integers(16, 1200, 2).tolist()
    lens = Intrinsics(700.0, 700 * rng.uniform(0.6, 1.6), width / 2, height / 2, width, height)
    windows = random_windows(rng, width, height, 4)
    found = apart(wavy(width, height), windows, lens, size)
    assert found.mean((1, 2, 3)).max() < 0.5 and (found > 2).mean() < 0.01
    assert found.max() <= 10  # where the image ends
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    found = apart(noise, windows, lens, size)
    assert found.mean((1, 2, 3)).max() < 1.5 and found.max() <= 10


def test_an_image_of_4k():
    lens = Intrinsics.from_fov(3840, 2160)
    whole, small, edge = CropWindow(1920, 1080, 3900), CropWindow(3000.3, 400.7, 90), CropWindow(3839, 2159, 700)
    image = cv2.resize(wavy(480, 270), (3840, 2160))
    found = apart(image, [whole, small, edge], lens, 256)
    assert found.mean() < 0.5 and (found > 2).mean() < 0.01


def test_a_crop_does_not_depend_on_the_others(rng):
    width, height = 900, 700
    image, lens = rng.integers(0, 256, (height, width, 3), np.uint8), Intrinsics.from_fov(width, height)
    windows = random_windows(rng, width, height, AT_ONCE + 3)
    together = cut_crops(image, windows, lens, 64, CPU).int()
    for crop, window in zip(together, windows):
        assert (crop - cut_crops(image, [window], lens, 64, CPU)[0].int()).abs().max() <= 1


def test_a_window_a_pixel_on_has_the_crop_a_pixel_on(rng):
    image, lens = rng.integers(0, 256, (600, 800, 3), np.uint8), Intrinsics.from_fov(800, 600)
    side, size = float(rng.uniform(30, 127)), 64  # with more, averages are taken of blocks that begin elsewhere
    x, y = rng.uniform(250, 350, 2).tolist()
    step = side / size
    windows = [CropWindow(x, y, side), CropWindow(x + step, y, side), CropWindow(x, y + step, side)]
    crop, right, below = cut_crops(image, windows, lens, size, CPU).int()
    assert (crop[:, 1:] - right[:, :-1]).abs().max() <= 1
    assert (crop[1:] - below[:-1]).abs().max() <= 1


def test_half_a_pixel_is_seen():
    """A ramp of 10 grey levels a pixel tells where it was read, to a tenth of a pixel."""
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None] * 10, (20, 24, 3)).copy()
    for shift in np.linspace(0, 1, 11):
        crop = cut_crops(ramp, [CropWindow(12 + shift, 10, 8)], Intrinsics.from_fov(24, 20), 8, CPU)[0]
        np.testing.assert_allclose(crop[4, :, 0], (8 + shift + np.arange(8)) * 10, atol=0.51)


def test_outside_is_black():
    white, lens = np.full((100, 100, 3), 255, np.uint8), Intrinsics.from_fov(100, 100)
    windows = [CropWindow(0, 50, 50), CropWindow(-500, 50, 50), CropWindow(50, 5000, 50), CropWindow(50, 50, 50)]
    half, left, below, inside = cut_crops(white, windows, lens, 64, CPU)
    assert (half[:, :30] == 0).all() and (half[:, 34:] == 255).all()
    assert not left.any() and not below.any() and (inside == 255).all()
    assert not cut_crops(white, windows[1:3], lens, 64, CPU).any()
    assert cut_crops(white, [], lens, 64, CPU).shape == (0, 64, 64, 3)


def test_images_that_torch_does_not_take():
    """Mirrored views and bytes of a message that may not be written."""
    image, lens, window = wavy(80, 60), Intrinsics.from_fov(80, 60), CropWindow(40, 30, 50)
    read_only = np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape)
    expected = cut_crops(image, [window], lens, 64, CPU)
    assert (cut_crops(read_only, [window], lens, 64, CPU) == expected).all()
    assert (cut_crops(read_only[..., ::-1], [window], lens, 64, CPU) == expected.flip(3)).all()


def test_a_tensor_is_taken_where_it_is(rng):
    crops = torch.from_numpy(rng.integers(0, 256, (3, 8, 8, 3), np.uint8))
    assert on_device(crops, CPU).data_ptr() == crops.data_ptr()
    assert on_device(crops[1:], CPU).data_ptr() == crops[1].data_ptr()
    np.testing.assert_array_equal(on_device(crops.numpy()[:, ::-1], CPU), crops.flip(1))
