import cv2
import numpy as np
import torch

from deformer_core.geometry.camera import (
    CropWindow,
    Intrinsics,
    camera_from_translation,
    camera_translation,
    crop_rotation,
    full_translation,
    project_crop,
)


def random_scene(rng: np.random.Generator, count: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    box = np.column_stack([rng.uniform(-0.9, 0.9, (count, 2)), rng.uniform(0.05, 0.5, count)])
    translation = np.column_stack([rng.uniform(-0.2, 0.2, (count, 2)), rng.uniform(2, 6, count)])
    points = rng.uniform(-0.8, 0.8, (count, 40, 3))
    box_t = torch.tensor(box)
    return torch.tensor(points), camera_from_translation(torch.tensor(translation), box_t), box_t


def test_crop_rotation_is_proper_and_looks_through_the_centre(rng: np.random.Generator) -> None:
    box = random_scene(rng)[2]
    rotation = crop_rotation(box)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand_as(rotation))
    torch.testing.assert_close(torch.det(rotation), torch.ones(len(box), dtype=torch.float64))
    axis = rotation[:, :, 2]
    torch.testing.assert_close(axis[:, :2] / axis[:, 2:], box[:, :2])


def test_projection_equals_opencv_through_the_full_camera(rng: np.random.Generator) -> None:
    """The crop's projection is the full camera's, mapped by the window: an independent pinhole decides."""
    intrinsics = Intrinsics(900.0, 900.0, 640.0, 350.0, 1280, 720)
    windows = [CropWindow(*rng.uniform([100, 100, 80], [1200, 600, 700])) for _ in range(5)]
    box = torch.tensor(np.stack([window.box(intrinsics) for window in windows]), dtype=torch.float64)
    points = torch.tensor(rng.uniform(-0.6, 0.6, (5, 30, 3)))
    camera = camera_from_translation(torch.tensor(rng.uniform([-0.3, -0.3, 2], [0.3, 0.3, 5], (5, 3))), box)
    uv = project_crop(points, camera, box).numpy()
    rotation, translation = crop_rotation(box).numpy(), full_translation(camera, box).numpy()
    for i, window in enumerate(windows):
        rvec = cv2.Rodrigues(rotation[i])[0]
        pixels = cv2.projectPoints(points[i].numpy(), rvec, translation[i], intrinsics.matrix, None)[0][:, 0]
        expected = (pixels - [window.center_x, window.center_y]) / (window.side / 2)
        np.testing.assert_allclose(uv[i], expected, atol=2e-5)


def test_near_the_centre_it_is_weak_perspective_with_depth(rng: np.random.Generator) -> None:
    points, camera, box = random_scene(rng)
    box[:, :2] = 0
    s, t, h = camera[:, :1], camera[:, 1:], box[:, 2:]
    expected = s[..., None] * (points[..., :2] + t[:, None]) / (1 + (s * h)[..., None] * points[..., 2:])
    torch.testing.assert_close(project_crop(points, camera, box), expected)


def test_camera_and_translation_are_inverse(rng: np.random.Generator) -> None:
    _, camera, box = random_scene(rng)
    torch.testing.assert_close(camera_from_translation(camera_translation(camera, box), box), camera)


def test_points_behind_the_camera_stay_finite() -> None:
    box = torch.tensor([[0.1, 0.0, 0.3]])
    camera = torch.tensor([[1.0, 0.0, 0.0]])
    uv = project_crop(torch.tensor([[[0.1, 0.2, -50.0]]]), camera, box)
    assert torch.isfinite(uv).all()


def test_projection_gradient(rng: np.random.Generator) -> None:
    points, camera, box = (value[:2].requires_grad_() for value in random_scene(rng))
    assert torch.autograd.gradcheck(lambda p, c: project_crop(p[:, :3], c, box.detach()), (points, camera))


def test_affine_maps_the_window_onto_the_crop() -> None:
    window = CropWindow.from_bbox(np.array([100.0, 40.0, 180.0, 200.0]), margin=1.25)
    assert window.side == 200
    corners = np.array([[window.center_x - 100, window.center_y - 100, 1], [window.center_x + 100, 220, 1.0]])
    # The window's edges, half a pixel outside the outermost pixel centres on both sides.
    corners[:, :2] -= 0.5
    np.testing.assert_allclose(corners @ window.affine(256).T, [[-0.5, -0.5], [255.5, 255.5]])


def test_field_of_view() -> None:
    intrinsics = Intrinsics.from_fov(1920, 1080, 90)
    corner = np.hypot(960, 540) / intrinsics.fx
    np.testing.assert_allclose(np.degrees(2 * np.arctan(corner)), 90)
