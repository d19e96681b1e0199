"""Shards of `training/render.py` as samples."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.data.sample import Sample
from deformer_core.data.synthetic.shards import decode_images, read_shard
from deformer_core.errors import InputError
from deformer_core.geometry.camera import crop_rotation


class RenderedSamples:
    """A folder of shards as a sequence. Read in order, or nearly: one shard is held at a time.

    size: of the images, pixels; without one, as they were rendered.
    Errors: `InputError` if the folder holds no shards, or one of them is damaged.
    """

    def __init__(self, folder: Path, size: int | None = None) -> None:
        self.folder, self.size = folder, size
        self.paths = sorted(folder.glob("shard_*.npz"))
        if not self.paths:
            raise InputError(f"{folder} holds no shards (shard_*.npz): render them with training/render.py.")
        self.starts = np.cumsum([0, *(_count(path) for path in self.paths)])
        self._read = lru_cache(maxsize=1)(read_shard)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Sample:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        row = index - int(self.starts[number])
        shard = self._read(self.paths[number])
        box = shard["box"][row]
        rotations = shard["rotations"][row].copy()
        # Shards keep the root in the full camera's axes; a sample is in the crop's virtual camera.
        rotations[0] = crop_rotation(torch.from_numpy(box)[None])[0].numpy().T @ rotations[0]
        joints, image = shard["joints"][row], decode_images(shard, [row])[0]
        return Sample(
            source=f"{self.folder.name}:{int(shard['index'][row])}",
            box=box,
            uv=shard["joints_2d"][row],
            uv_weight=np.ones(len(joints), np.float32),
            clean=bool(shard["clean"][row]),
            truncated=bool(shard["truncated"][row]),
            companions=int(shard["companions"][row]) if "companions" in shard else None,
            image=image if self.size is None else resize(image, self.size),
            joints=joints,
            rotations=rotations,
            shape=shard["shape"][row],
            camera=shard["camera"][row],
        )


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """A crop for a model of another input size, averaged or interpolated: people are rendered once for all."""
    import cv2

    if len(image) == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _count(path: Path) -> int:
    try:
        with np.load(path) as archive:
            return len(archive["index"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not a readable shard ({error}); delete it and render again.") from error
