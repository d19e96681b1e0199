"""Table rows from predictions on our own sets, and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.keypoints2d import LabelledPerson
from deformer_core.data.sample import Sample
from deformer_core.geometry.camera import CropWindow
from deformer_core.training.metrics import evaluated_joints, pa_mpjpe, pck, summarize_3d
from deformer_core.training.predictions import Predictions

MARGIN = 1.25
Row = dict[str, float]


def measure_3d(found: Predictions, samples: Sequence[Sample], vertices: NDArray, names: Sequence[str]) -> Row:
    """Table row in millimetres. vertices: (N, V, 3) true coarse meshes, metres."""
    joints = np.stack([sample.joints for sample in samples if sample.joints is not None])
    row = summarize_3d(1000 * found.joints, 1000 * joints, 1000 * found.vertices, 1000 * vertices, names)
    errors = pa_mpjpe(1000 * evaluated_joints(found.joints, names), 1000 * evaluated_joints(joints, names))
    return {"people": len(errors), **row, "pa_mpjpe_sem_mm": float(errors.std() / len(errors) ** 0.5)}


def true_meshes(samples: Sequence[Sample], topology: BodyTopology) -> NDArray[np.float32]:
    """(N, V, 3) coarse vertices, metres."""
    rotations = np.stack([sample.rotations for sample in samples if sample.rotations is not None])
    shapes = np.stack([sample.shape for sample in samples if sample.shape is not None])
    with torch.no_grad():
        return ParametricBody(topology)(torch.from_numpy(rotations), torch.from_numpy(shapes))["coarse"].numpy()


def measure_2d(uv: NDArray[np.float32], people: Sequence[LabelledPerson], prefix: str = "") -> Row:
    """PCK at 0.1 and 0.05 of the longer side of the person's box, over all labelled joints. uv: (N, 17, 2)."""
    windows = [CropWindow.from_bbox(person.box, MARGIN) for person in people]
    center = np.array([(window.center_x, window.center_y) for window in windows])[:, None]
    half = np.array([window.side / 2 for window in windows])[:, None, None]
    labels = np.stack([person.keypoints for person in people])
    side = np.array([person.side for person in people])
    pixels = uv * half + center
    figures = {"pck_0_1": 0.1, "pck_0_05": 0.05}
    return {prefix + name: pck(pixels, labels[..., :2], labels[..., 2], side, limit) for name, limit in figures.items()}


def paired(found: Predictions, lifted: Predictions, samples: Sequence[Sample], names: Sequence[str]) -> Row:
    """PA-MPJPE minus the baseline's on the same people, with its standard error; below 0 the image helps."""
    joints = evaluated_joints(np.stack([s.joints for s in samples if s.joints is not None]), names)
    ours, theirs = (pa_mpjpe(evaluated_joints(found_by.joints, names), joints) for found_by in (found, lifted))
    difference = 1000 * (ours - theirs)
    return {
        "minus_lifting_mm": float(difference.mean()),
        "minus_lifting_sem_mm": float(difference.std() / len(difference) ** 0.5),
    }


def table(rows: Mapping[str, Any], title: str) -> str:
    """The nested figures as text, one line a set and one figure after the other."""
    lines = [title]
    for name, row in rows.items():
        if isinstance(row, str):
            lines.append(f"  {name:18} {row}")
        elif any(isinstance(value, dict) for value in row.values()):
            lines.append(table(row, f"  {name}"))
        else:
            lines.append(f"  {name:18} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    return "\n".join(lines)


def comparison(ours: Mapping[str, Any], name: str, published: Mapping[str, Mapping[str, float]]) -> str:
    """The published rows of a protocol and ours below them, one column a figure; "-" where there is none."""
    columns = [key for key in ("pve_mm", "mpjpe_mm", "pa_mpjpe_mm") if isinstance(ours.get(key), float)]
    rows: list[tuple[str, Mapping[str, Any]]] = [*published.items(), (name, ours)]
    width = max(len(row) for row, _ in rows) + 2
    heads = {"pve_mm": "MVE", "mpjpe_mm": "MPJPE", "pa_mpjpe_mm": "PA-MPJPE"}
    lines = [" " * width + "".join(f"{heads[key]:>10}" for key in columns) + "   mm"]
    for row, figures in rows:
        cells = (f"{figures[key]:10.1f}" if key in figures else f"{'-':>10}" for key in columns)
        lines.append(f"{row:{width}}" + "".join(cells))
    return "\n".join(lines)


def details(figures: Mapping[str, Any]) -> str:
    """`per_joint` and `per_group` of a protocol as text, a line a joint or group."""
    lines = []
    for name, kind in (("per_joint", "joint"), ("per_group", "group")):
        nested = figures.get(name, {})
        if name == "per_joint" and nested:
            nested = {joint: {key: nested[key][joint] for key in nested} for joint in next(iter(nested.values()))}
        for entry, row in nested.items():
            lines.append(f"  {kind} {entry:18} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    return "\n".join(lines)
