"""A recording in the layout of pose2sim's demo, written by the test with cameras that it knows."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from deformer_core.data.pose2sim import find_demo, fit, open_recording, read_calibration
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics

TURNS = [cv2.Rodrigues(np.array(vector))[0] for vector in ([1.2, 0.3, -0.4], [-0.5, 1.0, 0.2])]
CENTERS = [np.array([1.0, 2.0, 1.5]), np.array([-2.0, 0.5, 1.0])]
LENS = Intrinsics(120.0, 121.0, 40.0, 66.0, 88, 160)
DISTORTION = (-0.05, 0.13, 0.001, -0.0005)


def write_qca(folder: Path) -> None:
    entries = []
    for number, (turn, center) in reversed(list(enumerate(zip(TURNS, CENTERS), 1))):
        rows = np.diag([1, -1, -1]) @ turn  # Qualisys' cameras look along -z
        places = " ".join(f'r{i + 1}{j + 1}="{rows[i, j]:.15f}"' for i in range(3) for j in range(3))
        x, y, z = 1000 * center
        k1, k2, p1, p2 = DISTORTION
        entries.append(f"""<camera serial="cam0{number}" model="none">
          <fov_video bottom="{LENS.height - 1}" left="0" right="{LENS.width - 1}" top="0"/>
          <transform {places} x="{x}" y="{y}" z="{z}"/>
          <intrinsic centerPointU="{64 * LENS.cx}" centerPointV="{64 * LENS.cy}" focalLengthU="{64 * LENS.fx}"
            focalLengthV="{64 * LENS.fy}" radialDistortion1="{k1}" radialDistortion2="{k2}"
            tangentalDistortion1="{p1}" tangentalDistortion2="{p2}"/></camera>""")
    folder.mkdir(parents=True)
    text = f"<?xml version='1.0'?><calibration><cameras>{''.join(entries)}</cameras></calibration>"
    (folder / "Calib.qca.txt").write_text(text)


def write_toml(path: Path) -> None:
    tables = []
    for number, (turn, center) in enumerate(zip(TURNS, CENTERS), 1):
        rotation, translation = cv2.Rodrigues(turn)[0].ravel().tolist(), (-turn @ center).tolist()
        tables.append(
            f'[cam0{number}]\nname = "cam0{number}"\nsize = [ {LENS.width}.0, {LENS.height}.0]\n'
            f"matrix = {LENS.matrix.tolist()}\ndistortions = {list(DISTORTION)}\nrotation = {rotation}\n"
            f"translation = {translation}\nfisheye = false\n"
        )
    path.write_text("\n".join(tables) + "\n[metadata]\nadjusted = false\n")


def write_video(path: Path, width: int, height: int, frames: int) -> None:
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (width, height))
    for index in range(frames):
        writer.write(np.full((height, width, 3), (20 * index, 60, 200), np.uint8))
    writer.release()


def test_both_calibrations_are_the_same_cameras(tmp_path: Path) -> None:
    write_qca(tmp_path / "calibration")
    from_qca = read_calibration(tmp_path / "calibration")
    write_toml(tmp_path / "calibration" / "Calib.toml")
    pytest.importorskip("tomllib")
    from_toml = read_calibration(tmp_path / "calibration")
    for number, (a, b) in enumerate(zip(from_qca, from_toml, strict=True)):
        expected = np.column_stack([TURNS[number], -TURNS[number] @ CENTERS[number]])
        for camera in (a, b):
            assert camera.name == f"cam0{number + 1}"
            np.testing.assert_allclose(camera.world_to_camera, expected, atol=1e-9)
            np.testing.assert_allclose(camera.distortion, DISTORTION)
            np.testing.assert_allclose(camera.intrinsics.matrix, LENS.matrix)


def test_undistorting_puts_points_where_a_pinhole_sees_them(tmp_path: Path, rng: np.random.Generator) -> None:
    write_qca(tmp_path / "calibration")
    camera = read_calibration(tmp_path / "calibration")[0]
    point = np.array([*rng.uniform(-0.15, 0.15, 2), 1.0])
    matrix = LENS.matrix.copy()
    distorted = cv2.projectPoints(point[None], np.zeros(3), np.zeros(3), matrix, np.array(DISTORTION))[0].ravel()
    y, x = np.mgrid[: LENS.height, : LENS.width] + 0.5
    blob = np.exp(-((x - distorted[0]) ** 2 + (y - distorted[1]) ** 2) / 18)
    image = camera.undistort(np.repeat((255 * blob)[..., None], 3, 2).astype(np.uint8))[..., 0].astype(float)
    found = np.array([(image * x).sum(), (image * y).sum()]) / image.sum()
    np.testing.assert_allclose(found, (LENS.matrix @ point)[:2], atol=0.2)


def test_a_video_of_another_size_was_fitted_with_bars() -> None:
    """Half the size and then too wide by 20 pixels: 10 on either side."""
    assert fit(LENS, 64, 80) == Intrinsics(60.0, 60.5, 30.0, 33.0, 64, 80)
    assert fit(LENS, LENS.width, LENS.height) == LENS


def test_frames_of_all_cameras_together(tmp_path: Path) -> None:
    write_qca(tmp_path / "calibration")
    for number in (1, 2):
        write_video(tmp_path / "videos" / f"cam0{number}.mp4", 88, 160, 5 + number)
    recording = open_recording(find_demo(tmp_path))
    frames = list(recording.frames(2))
    assert recording.count == 6 and len(frames) == 3 and all(len(views) == 2 for views in frames)
    for index, views in enumerate(frames):
        for image in views:
            np.testing.assert_allclose(image[80, 44], (200, 60, 40 * index), atol=12)  # RGB, the right moment


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pip download --no-deps pose2sim"):
        find_demo(tmp_path)
    write_qca(tmp_path / "calibration")
    (tmp_path / "videos").mkdir()
    with pytest.raises(InputError, match="0 videos for 2"):
        open_recording(tmp_path)
    (tmp_path / "calibration" / "Calib.qca.txt").write_text("<calibration><camera serial='a'/></calibration>")
    with pytest.raises(InputError, match="Calib.qca.txt"):
        read_calibration(tmp_path / "calibration")
