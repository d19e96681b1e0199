"""One person seen by several calibrated cameras: a reference by triangulation, and how well the views agree.

The reference is no motion capture. It is triangulated from 2D keypoints, so it has their errors: an image-based
detector's view of where a hip is, and a few centimetres of noise, which `reference_px` and `reference_limb_mm` tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from deformer_core.errors import InputError
from deformer_core.geometry.triangulation import triangulate_agreeing
from deformer_core.training.metrics import EVALUATED, LIMBS, FloatArray, mpjpe, pa_mpjpe

REFERENCE = (
    "triangulated from the model's own 2D keypoints in all views, no motion capture: read its figures beside the "
    "reference's own error, reference_px (median reprojection) and reference_limb_mm (spread of a limb's length)"
)
JOINTS = tuple(name for name in EVALUATED if name != "nose")
"""Without the nose, which two of the four cameras of pose2sim's demo cannot see."""
LEAST_SCORE = 0.2
LIMIT = 0.02
"""Two cameras agree on a keypoint within this, on the plane z = 1: 33 pixels in the demo, 8 cm at 4 m."""


def measure_views(
    joints: FloatArray,
    seen: FloatArray,
    scores: FloatArray,
    cameras: FloatArray,
    focal: float,
    names: Sequence[str],
) -> dict[str, float]:
    """One table row over all moments and views.

    joints: (T, V, J, 3) metres, each in its full camera's axes. seen: (T, V, 17, 2) keypoints on the plane z = 1,
    scores: (T, V, 17). cameras: (V, 3, 4) world to camera. focal: pixels, for the reference's own error alone.
    names: of the J joints, the keypoints' first. A moment counts if all `JOINTS` could be triangulated.

    Errors: `InputError` if none could be.
    """
    columns = [names.index(name) for name in JOINTS]
    weights = np.where(scores >= LEAST_SCORE, scores, 0)
    found = [triangulate_agreeing(s[:, columns], cameras, w[:, columns], LIMIT) for s, w in zip(seen, weights)]
    whole = [np.isfinite(moment.points).all() for moment in found]
    if not any(whole):
        raise InputError("no moment of the recording could be triangulated: do calibration and videos belong together?")
    world = np.stack([moment.points for moment, good in zip(found, whole) if good])  # (T, J, 3)
    misses = np.concatenate([moment.error for moment, good in zip(found, whole) if good])
    reference = 1000 * np.einsum("vij,tnj->tvni", cameras[..., :3], world)
    predicted = 1000 * joints[whole][:, :, columns]
    flat, true = predicted.reshape(-1, len(columns), 3), reference.reshape(-1, len(columns), 3)
    errors = pa_mpjpe(flat, true)
    pairs = list(permutations(range(len(cameras)), 2))
    agreement = np.stack([pa_mpjpe(predicted[:, a], predicted[:, b]) for a, b in pairs])
    return {
        "moments": int(sum(whole)),
        "views": len(cameras),
        "pa_mpjpe_mm": float(errors.mean()),
        "cross_view_pa_mpjpe_mm": float(agreement.mean()),
        "mpjpe_mm": float(mpjpe(_centred(flat), _centred(true)).mean()),
        "reference_px": float(np.median(misses) * focal),
        "reference_limb_mm": float(_limb_spread(1000 * world).mean()),
    }


def _centred(points: FloatArray) -> FloatArray:
    hips = [JOINTS.index("left_hip"), JOINTS.index("right_hip")]
    return points - points[:, hips].mean(1, keepdims=True)


def _limb_spread(points: FloatArray) -> NDArray[np.floating]:
    """Standard deviation over time of each limb's length, (8,): true bones keep theirs."""
    upper, lower = ([JOINTS.index(names[end]) for names in LIMBS] for end in (0, 1))
    return np.linalg.norm(points[:, upper] - points[:, lower], axis=-1).std(0)
