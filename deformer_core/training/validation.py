"""Figures during training, on people never trained on. They choose the best weights; they are not the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.features import FeatureCache
from deformer_core.data.sample import Batch, pose_labels
from deformer_core.geometry.camera import project_crop
from deformer_core.training.metrics import pck, summarize_3d
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import build_poses, build_sampler, read_rows, to_device
from deformer_core.training.task import TrainingTask

HELD_OUT_SEED = 77
CHUNK = 64
PCK_SIDE = 2 / 1.25
"""Side of the person's box in half sides of an unchanged crop."""


class Validation:
    """`validation(task)` gives table rows by name, and the score that should fall."""

    def __init__(self, config: TrainConfig, topology: BodyTopology) -> None:
        self.config, self.topology = config, topology
        self.level = config.network.query_level if config.model == "deformer" else "coarse"
        self.body = ParametricBody(topology, (self.level,))
        self.regressor = torch.from_numpy(topology.levels[self.level].joint_regressor.dense())
        self.caches = {Path(folder).name: FeatureCache(Path(folder), topology) for folder in config.validation.caches}
        self.poses: Batch | None = None
        if config.validation.poses:
            sampler = build_sampler(config, topology, held_out=True)
            self.poses = build_poses(config, topology, sampler, HELD_OUT_SEED, config.validation.poses)(0)

    @torch.no_grad()
    def __call__(self, task: TrainingTask) -> tuple[dict[str, dict[str, float]], float]:
        """Rows of `_measure`; the score is PA-MPJPE of the folders with 3D labels, else of the poses, else 1 - PCK."""
        figures: dict[str, dict[str, float]] = {}
        if self.poses is not None:
            figures["poses"] = self._measure(task, "poses", [self.poses])
        image = self.config.image
        for name, cache in self.caches.items():
            starts = range(0, len(cache), CHUNK)
            chunks = (read_rows(cache, np.arange(start, min(start + CHUNK, len(cache))), image) for start in starts)
            figures[name] = self._measure(task, "images", chunks)
        scores = [row["pa_mpjpe_mm"] for name, row in figures.items() if name != "poses" and "pa_mpjpe_mm" in row]
        if not scores:
            scores = [row.get("pa_mpjpe_mm", 1 - row["pck_0_1"]) for row in figures.values()][:1]
        return figures, float(np.mean(scores)) if scores else float("inf")

    def _measure(self, task: TrainingTask, part: str, batches: Iterable[Batch]) -> dict[str, float]:
        """3D figures of the people with meshes, PCK of all labelled joints that lie in the crop."""
        device = next(task.parameters()).device
        rows: list[tuple[np.ndarray, ...]] = []
        for batch in batches:
            outputs = task.predict(part, to_device({part: batch}, device)[part])
            last = outputs["layers"][-1]
            vertices = outputs.get(f"vertices_{self.level}", last[f"vertices_{self.level}"]).cpu()
            joints = outputs["joints"].cpu() if "joints" in outputs else self.regressor @ vertices
            uv = project_crop(joints, last["camera"].cpu(), batch["box"])
            true = pose_labels(batch, self.body)
            seen = true["uv_weight"] * (true["uv"].abs() <= 1).all(-1)
            mesh = (joints, true["joints"], vertices, true[f"vertices_{self.level}"])
            rows.append(tuple(array.numpy() for array in (*mesh, uv, true["uv"], seen, true["has_mesh"])))
        *points, found_uv, true_uv, labelled, known = (np.concatenate(column) for column in zip(*rows, strict=True))
        side = np.full(len(true_uv), PCK_SIDE)
        row = {f"pck_{name}": pck(found_uv, true_uv, labelled, side, t) for name, t in (("0_1", 0.1), ("0_05", 0.05))}
        if known.any():
            joints, true_joints, vertices, true_vertices = (1000 * values[known > 0] for values in points)
            row |= summarize_3d(joints, true_joints, vertices, true_vertices, self.topology.joint_names)
        return row
