"""Calibrations applied to images against the projection written out, and lenses against synthetic pictures."""

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from deformer_core.geometry.camera import Intrinsics
from deformer_ros.camera_info import Distortion, Rectifier, distort_points, effective_intrinsics, undistort_points

WIDTH, HEIGHT = 1280, 720
K = (610.0, 0.0, 655.0, 0.0, 615.0, 350.0, 0.0, 0.0, 1.0)
P = (600.0, 0.0, 640.0, -30.0, 0.0, 600.0, 355.0, 0.0, 0.0, 0.0, 1.0, 0.0)
LENSES = {
    "plumb_bob": (-0.28, 0.09, 0.0006, -0.0004, -0.01),
    "rational_polynomial": (0.6, -0.1, 0.0003, 0.0002, 0.01, 0.9, -0.05, 0.01),
    "equidistant": (0.05, -0.02, 0.004, -0.001),
}


def camera_info(**changes: Any) -> Any:
    roi = {"x_offset": 0, "y_offset": 0, "width": 0, "height": 0, "do_rectify": False} | changes.pop("roi", {})
    fields = {
        "header": SimpleNamespace(frame_id="camera"),
        "width": WIDTH,
        "height": HEIGHT,
        "distortion_model": "plumb_bob",
        "d": (0.0,) * 5,
        "k": K,
        "p": P,
        "binning_x": 0,
        "binning_y": 0,
        "roi": SimpleNamespace(**roi),
    }
    return SimpleNamespace(**fields | changes)


def test_plain_calibrations() -> None:
    raw = effective_intrinsics(camera_info(), WIDTH, HEIGHT, False, 55)
    assert raw.intrinsics == Intrinsics(610, 615, 655, 350, WIDTH, HEIGHT)
    assert (raw.distortion, raw.note, raw.is_calibrated) == (None, None, True)
    rectified = effective_intrinsics(camera_info(d=LENSES["plumb_bob"]), WIDTH, HEIGHT, True, 55)
    assert rectified.intrinsics == Intrinsics(600, 600, 640, 355, WIDTH, HEIGHT)
    assert rectified.distortion is None and rectified.note is None


@pytest.mark.parametrize("rectified", [False, True])
def test_roi_binning_and_scaling_follow_the_pixels(rectified: bool, rng: np.random.Generator) -> None:
    """A point's pixel in the full image, cut, averaged and resized, is where the effective camera sees it."""
    roi = {"x_offset": 100, "y_offset": 40, "width": 1000, "height": 600}
    info = camera_info(roi=roi, binning_x=2, binning_y=4)
    matrix = np.reshape(P, (3, 4))[:, :3] if rectified else np.reshape(K, (3, 3))
    points = rng.uniform([-1, -1, 2], [1, 1, 5], (20, 3))
    full = (points @ matrix.T)[:, :2] / points[:, 2:]
    sent = (full - [100, 40]) / [2, 4]
    for scale, note in ((1, None), (0.5, "500x150")):
        width, height = int(500 * scale), int(150 * scale)
        camera = effective_intrinsics(info, width, height, rectified, 55)
        seen = (points @ camera.intrinsics.matrix.T)[:, :2] / points[:, 2:]
        np.testing.assert_allclose(seen, sent * scale, atol=1e-9)
        assert (camera.note is None) == (note is None) and (note or "") in (camera.note or "")
        assert (camera.intrinsics.width, camera.intrinsics.height) == (width, height)


def test_sizes_that_differ_by_rounding_are_left_alone() -> None:
    info = camera_info(width=1281, binning_x=2, binning_y=2)
    camera = effective_intrinsics(info, 640, 360, False, 55)
    assert camera.note is None and camera.intrinsics.fx == 305


def test_another_aspect_is_said() -> None:
    camera = effective_intrinsics(camera_info(), 640, 480, False, 55)
    assert camera.note is not None and "wrong if the image was cut" in camera.note


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (None, "no CameraInfo has come"),
        (camera_info(k=(0.0,) * 9, p=(0.0,) * 12), "'camera' is not calibrated"),
        (camera_info(k=(float("nan"),) * 9), "'camera' is not calibrated"),
    ],
)
def test_without_a_calibration_the_field_of_view_is_assumed(info: Any, words: str) -> None:
    camera = effective_intrinsics(info, 800, 600, False, 70)
    assert camera.intrinsics == Intrinsics.from_fov(800, 600, 70)
    assert not camera.is_calibrated and camera.distortion is None
    assert camera.note is not None and words in camera.note and "70 degrees" in camera.note


def test_rectified_without_p_takes_k() -> None:
    camera = effective_intrinsics(camera_info(p=(0.0,) * 12), WIDTH, HEIGHT, True, 55)
    assert camera.intrinsics.fx == 610 and camera.note is not None and "no P" in camera.note


@pytest.mark.parametrize(
    ("model", "coefficients", "words"),
    [
        ("plumb_bob", (1e-5, 0, 0, 0, 0), None),  # moves nothing by half a pixel
        ("", (), None),
        ("thin_lens", (0.1, 0.2), "'thin_lens' with 2 coefficients is not known"),
        ("plumb_bob", (0.1, 0.2, 0.3), "'plumb_bob' with 3 coefficients"),
        ("plumb_bob", (float("inf"), 0, 0, 0, 0), "not finite"),
    ],
)
def test_distortion_that_is_not_used(model: str, coefficients: tuple[float, ...], words: str | None) -> None:
    camera = effective_intrinsics(camera_info(distortion_model=model, d=coefficients), WIDTH, HEIGHT, False, 55)
    assert camera.distortion is None
    assert camera.note is None if words is None else words in (camera.note or "")


@pytest.mark.parametrize("model", LENSES)
def test_undistorting_inverts_the_published_formula(model: str, rng: np.random.Generator) -> None:
    """The models as REP-104 and OpenCV's manual write them, against OpenCV's iterations."""
    camera = effective_intrinsics(camera_info(distortion_model=model, d=LENSES[model]), WIDTH, HEIGHT, False, 55)
    assert camera.distortion is not None
    directions = rng.uniform(-0.6, 0.6, (50, 2))
    x, y = directions.T
    r = np.hypot(x, y)
    if model == "equidistant":
        theta, (k1, k2, k3, k4) = np.arctan(r), LENSES[model]
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        xd, yd = x * bent / r, y * bent / r
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = (*LENSES[model], 0, 0, 0)[:8]
        radial = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
        xd = x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
        yd = y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y
    pixels = np.stack([610 * xd + 655, 615 * yd + 350], 1)
    np.testing.assert_allclose(distort_points(directions, camera.intrinsics, camera.distortion), pixels, atol=1e-6)
    np.testing.assert_allclose(undistort_points(pixels, camera.intrinsics, camera.distortion), directions, atol=1e-4)


@pytest.mark.parametrize("model", LENSES)
def test_rectified_pictures_are_pinhole_pictures(model: str) -> None:
    """A dot at a known direction, drawn through the lens, lands where the rectified camera's intrinsics say."""
    camera = effective_intrinsics(camera_info(distortion_model=model, d=LENSES[model]), WIDTH, HEIGHT, False, 55)
    assert camera.distortion is not None
    rectifier = Rectifier(camera.intrinsics, camera.distortion)
    assert (rectifier.intrinsics.width, rectifier.intrinsics.height) == (WIDTH, HEIGHT)
    directions = np.array([[0, 0], [0.3, -0.2], [-0.5, 0.25], [0.6, 0.35], [-0.7, -0.3]])
    for direction, pixel in zip(directions, distort_points(directions, camera.intrinsics, camera.distortion)):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        cv2.circle(picture, np.round(pixel * 16).astype(int).tolist(), 6 * 16, (255,) * 3, -1, cv2.LINE_AA, 4)
        moments = cv2.moments(np.ascontiguousarray(rectifier(picture)[..., 0]))
        found = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
        expected = (rectifier.intrinsics.matrix @ [*direction, 1])[:2]
        assert np.abs(found - expected).max() < 1


def test_the_middles_of_the_edges_stay_in_the_picture() -> None:
    """Barrel distortion zooms out, pincushion does not zoom in, a fisheye loses its rim rather than everything."""
    source = Intrinsics(610, 615, 655, 350, WIDTH, HEIGHT)
    barrel = Distortion(LENSES["plumb_bob"], False)
    edges = np.array([[0.5, 350], [WIDTH - 0.5, 350], [655, 0.5], [655, HEIGHT - 0.5]])
    camera = Rectifier(source, barrel).intrinsics
    seen = undistort_points(edges, source, barrel) * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    assert camera.fx < source.fx and (seen >= -1).all() and (seen <= [WIDTH + 1, HEIGHT + 1]).all()
    assert Rectifier(source, Distortion((0.2, 0.0, 0.0, 0.0), False)).intrinsics == source
    wide = Intrinsics(300, 300, 640, 360, WIDTH, HEIGHT)  # 244 degrees from left to right
    assert Rectifier(wide, Distortion((0.0, 0.0, 0.0, 0.0), True)).intrinsics.fx == 150
