"""The field's figures, on arrays of millimetres (or pixels). Nothing here knows a model or a data set.

Arrays are (N people, J joints, 3) float; "per person" results are (N,), to be averaged by the caller over all
people at once: a mean of batch means would depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from deformer_core.geometry.procrustes import similarity_align

FloatArray = NDArray[np.floating]

LIMBS = tuple(
    (f"{side}_{upper}", f"{side}_{lower}")
    for side in ("left", "right")
    for upper, lower in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)

_PAIRED = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
EVALUATED = ("nose", *(f"{side}_{joint}" for joint in _PAIRED for side in ("left", "right")))
"""The 13 of our joints that are nearest to the field's J14; the other eyes, ears and feet would dilute its figures."""


PCK_3D_LIMIT = 150.0
"""Millimetres: the limit of 3DPCK, and the end of the limits that its AUC averages over (MPI-INF-3DHP, 3DV 2017)."""
AUC_STEP = 5.0
"""Millimetres."""


def mpjpe(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Mean distance of corresponding points per person: MPJPE of joints, PVE (MVE) of vertices. (N, J, 3) to (N,)."""
    return joint_errors(predicted, true).mean(-1)


def pa_mpjpe(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """`mpjpe` after `procrustes`. (N, J, 3) to (N,)."""
    return mpjpe(procrustes(predicted, true), true)


def procrustes(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """The prediction after the best rotation, uniform scale and translation. (N, J, 3) to (N, J, 3) float64.

    Reflections are not allowed, so a mirrored prediction stays wrong. A prediction whose points all coincide
    is moved to the mean of the true points; its error is then their mean distance from that mean.
    """
    return similarity_align(np.asarray(predicted, np.float64), np.asarray(true, np.float64))


def joint_errors(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Distance of every pair of corresponding points. (N, J, 3) to (N, J)."""
    return np.linalg.norm(predicted - true, axis=-1)


def pck_3d(predicted: FloatArray, true: FloatArray, limit: float = PCK_3D_LIMIT) -> FloatArray:
    """3DPCK: share of a person's joints at most `limit` millimetres off, 0..1. (N, J, 3) to (N,)."""
    return (joint_errors(predicted, true) <= limit).mean(-1)


def auc_3d(predicted: FloatArray, true: FloatArray) -> FloatArray:
    """Mean of `pck_3d` over the limits 0, 5, ..., 150 mm: the area under its curve, 0..1. (N, J, 3) to (N,)."""
    limits = np.arange(0, PCK_3D_LIMIT + AUC_STEP, AUC_STEP)
    return (joint_errors(predicted, true)[..., None] <= limits).mean((1, 2))


def per_joint(errors: FloatArray, names: Sequence[str]) -> dict[str, float]:
    """Mean over people of `joint_errors` by joint. errors: (N, J)."""
    return dict(zip(names, errors.mean(0).tolist(), strict=True))


def per_group(errors: Mapping[str, FloatArray], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Means of per-person figures by action or sequence: {group: {figure: mean, "people": number}}, groups sorted."""
    labels = np.asarray(groups)
    table: dict[str, dict[str, float]] = {}
    for group in sorted(set(groups)):
        rows = labels == group
        means = {name: float(values[rows].mean()) for name, values in errors.items()}
        table[group] = {**means, "people": int(rows.sum())}
    return table


def pck_hits(
    predicted: FloatArray, true: FloatArray, labelled: FloatArray, side: FloatArray, threshold: float
) -> tuple[FloatArray, FloatArray]:
    """Labelled joints found within `threshold` of the person's box side, and labelled joints, per person.

    predicted, true: (N, J, 2) pixels; labelled: (N, J), above 0 where there is a label; side: (N,) pixels, the
    longer side of the person's box (the crop's is `margin` times that). Returns (N,) and (N,).
    """
    known = labelled > 0
    near = np.linalg.norm(predicted - true, axis=-1) < threshold * side[:, None]
    return (near & known).sum(1).astype(np.float64), known.sum(1).astype(np.float64)


def pck(predicted: FloatArray, true: FloatArray, labelled: FloatArray, side: FloatArray, threshold: float) -> float:
    """Share of all labelled joints that `pck_hits` finds; every joint counts once. NaN if none is labelled."""
    hits, known = pck_hits(predicted, true, labelled, side, threshold)
    return float(hits.sum() / known.sum()) if known.sum() else float("nan")


def limb_length_ratio(predicted: FloatArray, true: FloatArray, joint_names: Sequence[str]) -> FloatArray:
    """Predicted over true length of each of `LIMBS` (upper and lower arms and legs). (N, J, 3) to (N, 8)."""
    upper, lower = ([joint_names.index(names[end]) for names in LIMBS] for end in (0, 1))

    def length(joints: FloatArray) -> FloatArray:
        return np.linalg.norm(joints[:, upper] - joints[:, lower], axis=-1)

    return length(predicted) / np.maximum(length(true), 1e-9)


def heading_error(predicted: FloatArray, true: FloatArray, joint_names: Sequence[str]) -> FloatArray:
    """Angle between the predicted and the true axis from right to left hip, degrees in 0..180. (N, J, 3) to (N,)."""
    left, right = joint_names.index("left_hip"), joint_names.index("right_hip")
    a, b = predicted[:, left] - predicted[:, right], true[:, left] - true[:, right]
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(-1)))


def evaluated_joints(joints: FloatArray, names: Sequence[str]) -> FloatArray:
    """(N, J, 3) of `names` to (N, 13, 3), those of `EVALUATED`."""
    return joints[:, [names.index(name) for name in EVALUATED]]


def summarize_3d(
    joints: FloatArray, true_joints: FloatArray, vertices: FloatArray, true_vertices: FloatArray, names: Sequence[str]
) -> dict[str, float]:
    """One table row over all people. Arrays in millimetres, pelvis-centred; joints as `names`.

    MPJPE and PA-MPJPE are those of `EVALUATED`; `pa_mpjpe_all_mm` is over every joint.
    """
    heading = heading_error(joints, true_joints, names)
    body, true_body = evaluated_joints(joints, names), evaluated_joints(true_joints, names)
    return {
        "pa_mpjpe_mm": float(pa_mpjpe(body, true_body).mean()),
        "pa_mpjpe_all_mm": float(pa_mpjpe(joints, true_joints).mean()),
        "mpjpe_mm": float(mpjpe(body, true_body).mean()),
        "pck_3d": float(pck_3d(body, true_body).mean()),
        "auc_3d": float(auc_3d(body, true_body).mean()),
        "pve_mm": float(mpjpe(vertices, true_vertices).mean()),
        "limb_ratio": float(limb_length_ratio(joints, true_joints, names).mean()),
        "heading_deg": float(heading.mean()),
        "heading_over_90": float((heading > 90).mean()),
    }
