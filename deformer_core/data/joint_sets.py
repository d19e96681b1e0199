"""The joints of the field's datasets by name, and the way from one set to another.

Names are those of COCO in lower case; `left` is always the person's. The same name does not promise the same point:
a hip marked on a photo, a hip regressed from a mesh and the hip of a motion-capture rig lie centimetres apart, and
the field trains on their mixture as if they did not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deformer_core.body.topology import COCO_23, BodyTopology
from deformer_core.errors import InputError

FloatArray = NDArray[np.float32]

COCO17 = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
# In the order of COCO-WholeBody and OpenPose, which is not that of our own 23.
FEET = ("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel")
_ARMS = ("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist")
_LEGS = ("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle")
LSP14 = (*_LEGS, *_ARMS, "neck", "top_of_head")
J24 = (
    *LSP14, "pelvis", "thorax", "spine", "jaw", "head", "nose", "left_eye", "right_eye", "left_ear", "right_ear",
)  # fmt: skip
_RIGHT_LEG, _LEFT_LEG = ("right_hip", "right_knee", "right_ankle"), ("left_hip", "left_knee", "left_ankle")
_TRUNK = ("spine", "neck", "jaw", "head")
_RIGHT_ARM = ("right_shoulder", "right_elbow", "right_wrist")
_LEFT_ARM = ("left_shoulder", "left_elbow", "left_wrist")
OPENPOSE18 = (
    "nose", "neck", *_RIGHT_ARM, *_LEFT_ARM, *_RIGHT_LEG, *_LEFT_LEG, "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip

JOINT_SETS: dict[str, tuple[str, ...]] = {
    "coco17": COCO17,
    "coco23": COCO_23,
    "j24": J24,
    # What the METRO and SPIN lines evaluate.
    "j14": (*J24[:13], "head"),
    "lsp14": LSP14,
    "mpii16": (*_LEGS, "pelvis", "thorax", "neck", "top_of_head", *_ARMS),
    # Human3.6M as in Pose2Mesh and in METRO's regressor: the right leg first. Its "nose" is J24's jaw.
    "h36m17": ("pelvis", *_RIGHT_LEG, *_LEFT_LEG, *_TRUNK, *_LEFT_ARM, *_RIGHT_ARM),
    # The rows of SPIN's regressor: the left leg first.
    "h36m17_spin": ("pelvis", *_LEFT_LEG, *_RIGHT_LEG, *_TRUNK, *_LEFT_ARM, *_RIGHT_ARM),
    "openpose18": OPENPOSE18,
    "openpose25": (*OPENPOSE18[:8], "pelvis", *OPENPOSE18[8:], *FEET),
    "muco21": (
        "top_of_head", "thorax", *_RIGHT_ARM, *_LEFT_ARM, *_RIGHT_LEG, *_LEFT_LEG, "pelvis", "spine", "head",
        "right_hand", "left_hand", "right_toe", "left_toe",
    ),
    "smpl24": (
        "pelvis", "left_hip", "right_hip", "spine_1", "left_knee", "right_knee", "spine_2", "left_ankle",
        "right_ankle", "spine_3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
        "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hand",
        "right_hand",
    ),
}  # fmt: skip


def select(names_from: Sequence[str], names_to: Sequence[str]) -> list[int]:
    """Indices that pick `names_to` out of values in the order of `names_from`.

    Errors: `InputError` naming the joints that `names_from` lacks.
    """
    missing = [name for name in names_to if name not in names_from]
    if missing:
        raise InputError(f"the joints {', '.join(missing)} are not among {', '.join(names_from)}")
    places = list(names_from)
    return [places.index(name) for name in names_to]


def to_topology(values: ArrayLike, names: Sequence[str], topology: BodyTopology) -> tuple[FloatArray, FloatArray]:
    """Values of named joints in the order of the topology's.

    values: (K, ...), one row a name. Returns (J, ...), zero where there is none, and (J,) 1 or 0 for that.
    """
    given = np.asarray(values, np.float32)
    if len(given) != len(names):
        raise InputError(f"{len(given)} values were given for the {len(names)} joints {', '.join(names)}")
    places = {name: row for row, name in enumerate(names)}
    placed = np.zeros((len(topology.joint_names), *given.shape[1:]), np.float32)
    weight = np.zeros(len(topology.joint_names), np.float32)
    for row, name in enumerate(topology.joint_names):
        if name in places:
            placed[row], weight[row] = given[places[name]], 1
    return placed, weight
