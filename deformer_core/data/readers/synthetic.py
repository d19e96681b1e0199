"""Shards of `training/render.py`.

A crop is a window of the full image it was rendered for; here it is a small full image of its own whose principal point
lies elsewhere. Its labels are exact. Read in order: one shard is held at a time. Tags: clean (1: wholly inside the
crop and hidden by nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.readers.common import Records
from deformer_core.data.rendered import RenderedSamples
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics, crop_rotation, full_translation


def read(path: Path, topology: BodyTopology) -> Sequence[Annotation]:
    """path: the folder of the shards."""
    return Records(len(_open(path)), partial(_person, path, topology))


@lru_cache(maxsize=4)
def _open(folder: Path) -> RenderedSamples:
    """By folder, so that annotations can be pickled: open shards cannot."""
    return RenderedSamples(folder)


def _person(folder: Path, topology: BodyTopology, index: int) -> Annotation:
    sample = _open(folder)[index]
    assert sample.image is not None and sample.joints is not None and sample.camera is not None
    assert sample.rotations is not None
    if len(sample.joints) != len(topology.joint_names) or len(sample.rotations) != len(topology.rig.bone_names):
        raise InputError(f"{folder} was rendered with another body than '{topology.name}': render it again")
    size = len(sample.image)
    x, y, half = (float(value) for value in sample.box)
    focal = size / 2 / half
    box = torch.from_numpy(sample.box)[None]
    turn = crop_rotation(box)[0].numpy()
    rotations = np.concatenate([turn @ sample.rotations[:1], sample.rotations[1:]])
    return Annotation(
        source=sample.source,
        load_image=partial(_image, folder, index),
        center=(size / 2, size / 2),
        side=size,
        intrinsics=Intrinsics(focal, focal, size / 2 - x * focal, size / 2 - y * focal, size, size),
        uv=((sample.uv + 1) * size / 2).astype(np.float32),
        uv_weight=sample.uv_weight,
        joints=sample.joints @ turn.T,
        body=topology.name,
        rotations=rotations,
        shape=sample.shape,
        translation=full_translation(torch.from_numpy(sample.camera)[None], box)[0].numpy(),
        tags={"clean": int(sample.clean)},
    )


def _image(folder: Path, index: int) -> NDArray[np.uint8]:
    image = _open(folder)[index].image
    assert image is not None
    return image
