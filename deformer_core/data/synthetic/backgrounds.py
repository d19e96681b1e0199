"""Pictures to put behind people: squares of photos that avoid the people in them, or drawn ones without photos."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError

Image = NDArray[np.uint8]

SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 0.1


def is_held_out(name: str) -> bool:
    """One in ten, by a hash of the photo's name, so that no photo is on both sides whatever the order."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT_SHARE


class BackgroundBank:
    """Squares of one size in one array. The same folder, split, count and seed give the same squares.

    folder: of photos (jpg, png, any depth); people: a COCO-people json whose entries of `our_split` "train" are
    the photos to use (paths relative to the json) and whose boxes are to be avoided; without a folder squares
    are drawn.
    """

    def __init__(
        self,
        folder: Path | None = None,
        people: Path | None = None,
        split: str = "train",
        count: int = 1500,
        size: int = 256,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"Background split '{split}' is unknown: give one of {', '.join(SPLITS)}.")
        rng = np.random.default_rng(np.random.SeedSequence([seed, SPLITS.index(split)]))
        if folder is None and people is None:
            count = min(count, 200)
            self.images = np.stack([draw_background(rng, size) for _ in range(count)])
            self.ids = np.array([f"drawn-{split}-{i}" for i in range(count)])
            return
        photos = _listed_photos(people) if people is not None else _folder_photos(folder)
        photos = [photo for photo in photos if is_held_out(photo[0].name) == (split == "held_out")]
        if not photos:
            raise InputError(f"No background photos for split '{split}' in {people or folder}: check the folder.")
        self.images, self.ids = _cut_squares(rng, photos, count, size)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, rng: np.random.Generator) -> tuple[Image, int]:
        """One square, perhaps mirrored, perhaps a part of it enlarged; and its number."""
        index = int(rng.integers(len(self.images)))
        image = self.images[index]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        if rng.random() < 0.4:
            import cv2

            size = len(image)
            side = int(rng.uniform(0.5, 1) * size)
            x, y = (int(v) for v in rng.integers(0, size - side + 1, 2))
            image = cv2.resize(image[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_LINEAR)
        return image, index


def _listed_photos(people: Path) -> list[tuple[Path, NDArray[np.float64]]]:
    try:
        entries = json.loads(people.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{people} is not a readable list of photos ({error}).") from error
    photos = []
    for entry in entries:
        if entry["our_split"] == "train" and not entry.get("gray"):
            boxes = np.array([person["bbox_xywh"] for person in entry["people"]], dtype=np.float64)
            photos.append((people.parent / entry["file"], boxes.reshape(-1, 4)))
    return photos


def _folder_photos(folder: Path | None) -> list[tuple[Path, NDArray[np.float64]]]:
    assert folder is not None
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [(file, np.zeros((0, 4))) for file in files]


def _cut_squares(
    rng: np.random.Generator, photos: list[tuple[Path, NDArray[np.float64]]], count: int, size: int
) -> tuple[Image, NDArray[np.str_]]:
    import cv2

    images = np.empty((count, size, size, 3), np.uint8)
    ids: list[str] = []
    per_photo = max(1, -(-count // len(photos)))
    for number in rng.permutation(len(photos)):
        path, boxes = photos[number]
        photo = cv2.imread(str(path))
        if photo is None:
            continue
        squares = [square for _ in range(per_photo) if (square := _free_square(rng, photo.shape[:2], boxes))]
        for x, y, side in squares:
            if len(ids) == count:
                return images, np.array(ids)
            cut = photo[y : y + side, x : x + side, ::-1]
            method = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
            images[len(ids)] = cv2.resize(cut, (size, size), interpolation=method)
            ids.append(path.name)
    if not ids:
        raise InputError(f"None of {len(photos)} background photos could be read, the first is {photos[0][0]}.")
    return images[: len(ids)], np.array(ids)


def _free_square(
    rng: np.random.Generator, shape: tuple[int, ...], boxes: NDArray[np.float64]
) -> tuple[int, int, int] | None:
    """A square (x, y, side) that people's boxes cover by less than a thirtieth, or none after some tries."""
    height, width = shape
    shorter = min(height, width)
    for _ in range(12):
        side = int(rng.integers(min(100, shorter), shorter + 1))
        x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
        wide = np.minimum(boxes[:, 0] + boxes[:, 2], x + side) - np.maximum(boxes[:, 0], x)
        high = np.minimum(boxes[:, 1] + boxes[:, 3], y + side) - np.maximum(boxes[:, 1], y)
        if (np.maximum(wide, 0) * np.maximum(high, 0)).sum() < side * side / 30:
            return x, y, side
    return None


def draw_background(rng: np.random.Generator, size: int) -> Image:
    """A wall and a floor with noise of several scales, some boards or tiles, and polygons for things."""
    import cv2

    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    horizon = rng.uniform(0.2, 0.9)
    image: NDArray[Any] = np.empty((size, size, 3), np.float32)
    image[:] = rng.uniform(40, 230, 3) + (y - 0.5)[..., None] * rng.normal(0, 60, 3)
    floor = y > horizon
    depth = 1 / np.maximum(y - horizon, 0.01)
    tiles = np.sin(depth * rng.uniform(0.5, 6)) * np.sin((x - 0.5) * depth * rng.uniform(2, 20))
    color = rng.uniform(30, 220, 3) + np.where(rng.random() < 0.5, np.sign(tiles), 0 * tiles)[..., None] * 15
    image[floor] = color[floor]
    for _ in range(int(rng.integers(0, 9))):
        center, spread = rng.uniform(0, size, 2), rng.uniform(0.05, 0.4) * size
        corners = center + rng.normal(0, spread, (int(rng.integers(3, 7)), 2))
        hull = cv2.convexHull(corners.astype(np.int32))
        cv2.fillConvexPoly(image, hull, rng.uniform(10, 245, 3).tolist())
    for octave in (4, 8, 16, 32, 64, 128):
        noise: NDArray[Any] = rng.normal(0, 1, (octave, octave, 3 if octave < 16 else 1)).astype(np.float32)
        noise = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC).reshape(size, size, -1)
        image += noise * rng.uniform(0, 14)
    return np.clip(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2)), 0, 255).astype(np.uint8)
