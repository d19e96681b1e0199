"""Where are the people: NanoDet-g on ONNX Runtime, and the interface any other detector may fill.

NanoDet (RangiLyu, 2021) predicts, in every cell of strides 8, 16 and 32, a score and the distribution of the
distances from the cell's centre to the four sides of a box (Generalized Focal Loss, Li et al., NeurIPS 2020).
"""

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import onnxruntime

from deformer_core.errors import InputError
from deformer_core.weights import weight_path

LONG_SIDES = (384, 256)
"""The network looks at two sizes of the image: on 381 COCO photos it then misses 12 % of the people where, at
as many false alarms, one size of 416 pixels misses 19 %."""
STRIDES = (8, 16, 32)
OVERLAP = 0.5
"""Intersection over union above which the weaker of two boxes is taken for the same person."""
MIN_SIDE = 2.0
"""Smallest side of a box in pixels of the image."""


class Detector(Protocol):
    """Anything that finds people in an image."""

    def __call__(
        self, image: np.ndarray, score: float = 0.4, max_people: int = 20
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find people, the most certain first.

        Args:
            image: (H, W, 3) uint8 RGB.
            score: smallest score of a person to report, 0..1.
            max_people: report at most so many.

        Returns:
            boxes (N, 4) float32, left, top, right, bottom in pixels of the image and inside it; scores (N,)
            float32.
        """


class PersonDetector:
    """The default detector, for one image at a time on the processor."""

    def __init__(self, path: str | Path | None = None, threads: int | None = None):
        """Load the network.

        Args:
            path: graph made by `training/tools/convert_nanodet.py`; the shipped one by default.
            threads: processor threads; all cores by default.

        Raises:
            InputError: there is no readable graph at `path`.
        """
        path = Path(path) if path else weight_path("nanodet_g_416.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no narrower base
            raise InputError(f"no person detector can be loaded from {path}: {error}") from error

    def __call__(
        self, image: np.ndarray, score: float = 0.4, max_people: int = 20
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Detector`; an image that is not (H, W, 3) uint8 raises InputError."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"the detector needs RGB (H, W, 3) uint8, not {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        views, view = [], image
        for long_side in LONG_SIDES:
            view = resize(view, long_side)
            padded = pad(view)
            (predictions,) = self._session.run(["predictions"], {"images": padded[None]})
            boxes, scores = decode(predictions[0], padded.shape[:2], score)
            views.append((boxes * np.tile((width / view.shape[1], height / view.shape[0]), 2), scores))
        boxes, scores = (np.concatenate(parts) for parts in zip(*views, strict=True))

        boxes = boxes.clip(0, (width, height, width, height))
        visible = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)
        boxes, scores = boxes[visible], scores[visible]
        kept = suppress(boxes, scores, OVERLAP)[:max_people]
        return boxes[kept].astype(np.float32), scores[kept].astype(np.float32)


def resize(image: np.ndarray, long_side: int) -> np.ndarray:
    """Resize an image (H, W, 3) to a long side in pixels, its proportions kept as whole pixels allow."""
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def pad(image: np.ndarray) -> np.ndarray:
    """Pad an image (H, W, 3) with grey, right and below, to multiples of 32 pixels."""
    height, width = image.shape[:2]
    below, right = -height % 32, -width % 32
    return cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))


def decode(predictions: np.ndarray, size: tuple[int, int], score: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the cells that score enough.

    Args:
        predictions: (cells, 1 + 4 * bins) logit of a person and of each side's distance in strides, level by
            level and row by row.
        size: height and width of the network's image in pixels, multiples of 32.
        score: smallest score to keep.

    Returns:
        boxes (N, 4) left, top, right, bottom in pixels of that image; scores (N,).
    """
    scores = 1 / (1 + np.exp(-predictions[:, 0]))
    kept = np.flatnonzero(scores >= score)
    cells = np.concatenate([cell_centers(size, stride) for stride in STRIDES])[kept]
    logits = predictions[kept, 1:].reshape(len(kept), 4, predictions.shape[1] // 4)
    weights = np.exp(logits - logits.max(2, keepdims=True))
    distances = weights @ np.arange(logits.shape[2]) / weights.sum(2) * cells[:, 2:]
    return np.concatenate((cells[:, :2] - distances[:, :2], cells[:, :2] + distances[:, 2:]), 1), scores[kept]


def cell_centers(size: tuple[int, int], stride: int) -> np.ndarray:
    """(cells, 3) x, y of the centres of a level's cells in pixels, row by row, and the stride."""
    rows, columns = np.indices((size[0] // stride, size[1] // stride))
    centers = (np.stack((columns.ravel(), rows.ravel()), 1) + 0.5) * stride
    return np.insert(centers, 2, stride, axis=1)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Greedy non-maximum suppression: indices of the kept boxes (N, 4), best first."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    order, kept = np.argsort(-scores), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = (high - low).clip(0).prod(1)
        order = order[shared <= overlap * (areas[best] + areas[order] - shared)]
    return kept
