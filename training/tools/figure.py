"""A drawn person: a picture that pose networks and detectors recognise, free of rights, for tests."""

import cv2
import numpy as np

CANVAS = 256
JOINTS = {
    "nose": (128, 46),
    "left_eye": (133, 41),
    "right_eye": (123, 41),
    "left_ear": (140, 44),
    "right_ear": (116, 44),
    "left_shoulder": (148, 72),
    "right_shoulder": (108, 72),
    "left_elbow": (162, 104),
    "right_elbow": (94, 104),
    "left_wrist": (168, 134),
    "right_wrist": (88, 134),
    "left_hip": (140, 136),
    "right_hip": (116, 136),
    "left_knee": (144, 182),
    "right_knee": (112, 182),
    "left_ankle": (146, 226),
    "right_ankle": (110, 226),
}
"""COCO-17 joints of the figure, x and y in pixels of the canvas."""
BOX = (80, 22, 178, 242)
"""The figure's bounding box, x0 y0 x1 y1 in pixels of the canvas."""

SKY, GROUND = (120, 150, 190), (150, 140, 120)
SKIN, HAIR, LIPS, EYES = (224, 172, 140), (50, 35, 25), (150, 60, 60), (20, 20, 20)
SHIRT, TROUSERS, SHOES = (180, 40, 40), (70, 90, 190), (30, 30, 30)


def draw_person(size: int = CANVAS) -> np.ndarray:
    """RGB picture (size, size, 3) uint8 of a person who stands facing us; it scales as size / CANVAS."""
    scale = size / CANVAS
    height = np.linspace(0, 1, size)[:, None, None]
    image = np.tile(np.array(SKY) * (1 - height) + np.array(GROUND) * height, (1, size, 1)).astype(np.uint8)

    def pixel(point: tuple[int, int]) -> tuple[int, int]:
        return round(point[0] * scale), round(point[1] * scale)

    def limb(names: list[str], colour: tuple[int, int, int], width: float) -> None:
        points = np.array([pixel(JOINTS[name]) for name in names], np.int32)
        cv2.polylines(image, [points], False, colour, max(1, round(width * scale)), cv2.LINE_AA)

    def ellipse(
        center: tuple[int, int], axes: tuple[float, float], colour: tuple[int, int, int], start: int = 0
    ) -> None:
        radii = max(1, round(axes[0] * scale)), max(1, round(axes[1] * scale))
        cv2.ellipse(image, pixel(center), radii, 0, start, 360, colour, -1, cv2.LINE_AA)

    for side in ("left", "right"):
        limb([f"{side}_hip", f"{side}_knee", f"{side}_ankle"], TROUSERS, 19)
        x, y = JOINTS[f"{side}_ankle"]
        ellipse((x + (3 if side == "left" else -3), y + 6), (8, 9), SHOES)
        limb([f"{side}_elbow", f"{side}_wrist"], SKIN, 10)
        limb([f"{side}_shoulder", f"{side}_elbow"], SHIRT, 14)
        ellipse((JOINTS[f"{side}_wrist"][0], JOINTS[f"{side}_wrist"][1] + 6), (6, 6), SKIN)
    trunk = ["left_shoulder", "right_shoulder", "right_hip", "left_hip", "left_shoulder"]
    cv2.fillPoly(image, [np.array([pixel(JOINTS[name]) for name in trunk], np.int32)], SHIRT, cv2.LINE_AA)
    limb(trunk, SHIRT, 12)

    ellipse((128, 58), (6, 10), SKIN)
    ellipse((128, 42), (13, 17), SKIN)
    ellipse((128, 36), (14, 13), HAIR, start=180)
    for eye in ("left_eye", "right_eye"):
        ellipse(JOINTS[eye], (1.6, 1.6), EYES)
    ellipse((128, 51), (4, 1.2), LIPS)
    return image
