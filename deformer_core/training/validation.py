"""Figures during training, on people never trained on. They choose the best weights; they are not the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import crop
from deformer_core.data.features import FeatureCache
from deformer_core.data.packed import PackedPeople
from deformer_core.data.sample import Batch, collate, pose_labels
from deformer_core.geometry.camera import project_crop
from deformer_core.training.gather import gather_rows, share
from deformer_core.training.losses import Outputs
from deformer_core.training.metrics import pck, summarize_3d
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import build_poses, read_rows, to_device
from deformer_core.training.task import TrainingTask

HELD_OUT_SEED = 77
CHUNK = 64
PCK_SIDE = 2 / 1.25
"""Side of the person's box in half sides of an unchanged crop."""


ReadRows = Callable[[np.ndarray], Batch]


class Validation:
    """`validation(task)` gives table rows by name, and the score that should fall; the same in every process.

    image_size: of crops, pixels.
    """

    def __init__(self, config: TrainConfig, topology: BodyTopology, image_size: int = 256) -> None:
        self.config, self.topology, self.image_size = config, topology, image_size
        self.level = config.network.query_level if config.model == "deformer" else "coarse"
        self.body = ParametricBody(topology, (self.level,))
        self.regressor = torch.from_numpy(topology.levels[self.level].joint_regressor.dense())
        self.sets: dict[str, tuple[int, ReadRows]] = {}
        wanted = config.validation
        if wanted.poses:
            poses = build_poses(config, topology, HELD_OUT_SEED, wanted.poses, held_out=True)(0)
            self.sets["poses"] = (wanted.poses, lambda rows: {key: value[rows] for key, value in poses.items()})
        for folder in wanted.caches:
            cache = FeatureCache(Path(folder), topology)
            self.sets[Path(folder).name] = (len(cache), self._features_of(cache))
        for folder in wanted.streams:
            packed = PackedPeople(folder, topology)
            people = np.linspace(0, len(packed) - 1, min(wanted.stream_people, len(packed))).astype(int)
            self.sets[Path(folder).name] = (len(people), self._crops_of(packed, people))

    def _features_of(self, cache: FeatureCache) -> ReadRows:
        return lambda rows: read_rows(cache, rows, self.config.image)

    def _crops_of(self, packed: PackedPeople, people: np.ndarray) -> ReadRows:
        def read(rows: np.ndarray) -> Batch:
            annotations = packed.read(people[rows].tolist())
            return collate([crop(one, self.topology, self.image_size) for one in annotations], self.topology)

        return read

    @torch.no_grad()
    def __call__(self, task: TrainingTask) -> tuple[dict[str, dict[str, float]], float]:
        """Rows of `_measure`; the score is PA-MPJPE of the sets with 3D labels, else of the poses, else 1 - PCK."""
        figures = {name: self._measure(task, *of) for name, of in self.sets.items()}
        scores = [row["pa_mpjpe_mm"] for name, row in figures.items() if name != "poses" and "pa_mpjpe_mm" in row]
        if not scores:
            scores = [row.get("pa_mpjpe_mm", 1 - row["pck_0_1"]) for row in figures.values()][:1]
        return figures, float(np.mean(scores)) if scores else float("inf")

    @torch.no_grad()
    def look(self, task: TrainingTask, people: int = 4) -> tuple[Outputs, Batch]:
        """What the model makes of the first people of the last set, and their batch, for pictures."""
        count, read = self.sets[list(self.sets)[-1]]
        batch = read(np.arange(min(people, count)))
        return task.predict(to_device({"all": batch}, next(task.parameters()).device)["all"]), batch

    def _measure(self, task: TrainingTask, people: int, read: ReadRows) -> dict[str, float]:
        """3D figures of the people with meshes, PCK of all labelled joints that lie in the crop.

        Each process measures its share; whatever their number, every person counts once.
        """
        mine = share(people)
        found: list[tuple[np.ndarray, ...]] = []
        for start in range(0, len(mine), CHUNK):
            found.append(self._predict(task, read(mine[start : start + CHUNK])))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        *points, uv, true_uv, labelled, known, keypoints = (gather_rows(mine, column)[1] for column in columns)
        side = np.full(people, PCK_SIDE)
        row = {}
        for name, limit in (("0_1", 0.1), ("0_05", 0.05)):
            row[f"pck_{name}"] = pck(uv, true_uv, labelled, side, limit)
            first = keypoints.shape[1]
            row[f"keypoints_pck_{name}"] = pck(keypoints, true_uv[:, :first], labelled[:, :first], side, limit)
        if known.any():
            joints, true_joints, vertices, true_vertices = (1000 * values[known > 0] for values in points)
            row |= summarize_3d(joints, true_joints, vertices, true_vertices, self.topology.joint_names)
        return row

    def _predict(self, task: TrainingTask, batch: Batch) -> tuple[np.ndarray, ...]:
        """Joints, vertices and 2D, found and true in turn, with who and what is labelled; the backbone's keypoints."""
        device = next(task.parameters()).device
        outputs = task.predict(to_device({"all": batch}, device)["all"])
        last = outputs["layers"][-1]
        vertices = outputs.get(f"vertices_{self.level}", last[f"vertices_{self.level}"]).cpu()
        joints = outputs["joints"].cpu() if "joints" in outputs else self.regressor @ vertices
        uv = project_crop(joints, last["camera"].cpu(), batch["box"])
        true = pose_labels(batch, self.body)
        seen = true["uv_weight"] * (true["uv"].abs() <= 1).all(-1)
        mesh = (joints, true["joints"], vertices, true[f"vertices_{self.level}"])
        keypoints = outputs.get("keypoints", batch["keypoints"])[..., :2].cpu()
        return tuple(array.numpy() for array in (*mesh, uv, true["uv"], seen, true["has_mesh"], keypoints))
