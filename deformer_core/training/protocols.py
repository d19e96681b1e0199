"""The field's evaluation protocols by name: which people, which joints from where, about which root, what is undefined.

Two lines of work measure on the same data sets in ways that differ by many millimetres, so a figure without the name
of its protocol means nothing. Predicted joints are always regressed from the predicted mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import JOINT_SETS
from deformer_core.errors import InputError

MID_HIP = ("left_hip", "right_hip")
SMPL_FILES = "SMPL's files in $DEFORMER_SMPL (https://smpl.is.tue.mpg.de), J_regressor_h36m.npy among them"
PaperRows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Protocol:
    """A protocol on people of a reader (`data.readers`), or, without `dataset`, on one of our own sets."""

    summary: str
    joints: tuple[str, ...]
    """Evaluated; names of `data.joint_sets`."""
    regressor: str = ""
    """Key of `BodyTopology.extra_regressors` that makes the joints from a mesh; "": the body's own joints."""
    truth: Literal["mesh", "joints"] = "mesh"
    """Whether the true joints are regressed from the true mesh, or are the data set's own."""
    gendered: bool = False
    """Whether true meshes are those of the person's gender, else of the neutral body."""
    root: tuple[str, ...] = MID_HIP
    """The mean of these is subtracted before MPJPE and MVE, in the prediction and in the truth."""
    frames: str = "all"
    keep: Callable[[Annotation], bool] = lambda annotation: True
    """Which annotations count, as `frames` says."""
    undefined: Mapping[str, str] = field(default_factory=dict)
    """Figures that cannot be had, and why."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """Defaults of the reader's specification; the user gives at least `path`."""
    files: str = ""
    """What the user must have, and where it comes from."""
    group: str = ""
    """The tag by which a table is also given: action or sequence."""
    paper: PaperRows = field(default_factory=dict)
    """Published figures of the same protocol."""


def _h36m_p2(annotation: Annotation) -> bool:
    tags = annotation.tags
    return (
        _tag(annotation, "subject") in ("9", "11")
        and _tag(annotation, "camera") in ("4", "60457274")  # its number, or its serial number
        and int(tags.get("frame", 0)) % 5 == 0
    )


def _valid(annotation: Annotation) -> bool:
    return int(annotation.tags.get("valid", 1)) > 0


def _tag(annotation: Annotation, name: str) -> str:
    """Without leading letters and zeros, so that "S09", "9" and 9 are the same. Errors: `InputError` if not there."""
    if name not in annotation.tags:
        raise InputError(f"{annotation.source} does not say its {name}, by which the protocol chooses people")
    return str(annotation.tags[name]).lstrip("sS0")


_MVE_WITHOUT_MESH = {"pve_mm": "the data set has motion-captured joints and no meshes"}
_H36M: PaperRows = {
    "SPIN": {"pa_mpjpe_mm": 41.1},
    "METRO": {"mpjpe_mm": 54.0, "pa_mpjpe_mm": 36.7},
    "Graphormer": {"mpjpe_mm": 51.2, "pa_mpjpe_mm": 34.5},
    "PyMAF": {"mpjpe_mm": 54.2, "pa_mpjpe_mm": 37.2},
    "FastMETRO": {"mpjpe_mm": 52.2, "pa_mpjpe_mm": 33.7},
    "DeFormer HRNet-W48": {"mpjpe_mm": 44.8, "pa_mpjpe_mm": 31.6},
    "DeFormer 384x288": {"mpjpe_mm": 43.7, "pa_mpjpe_mm": 30.7},
    "DeFormer 6904 queries": {"mpjpe_mm": 43.9, "pa_mpjpe_mm": 30.7},
    "DeFormer HRFormer": {"mpjpe_mm": 43.3, "pa_mpjpe_mm": 30.0},
}
_3DPW: PaperRows = {
    "SPIN": {"pve_mm": 116.4, "pa_mpjpe_mm": 59.2},
    "METRO": {"pve_mm": 88.2, "mpjpe_mm": 77.1, "pa_mpjpe_mm": 47.9},
    "Graphormer": {"pve_mm": 87.7, "mpjpe_mm": 74.7, "pa_mpjpe_mm": 45.6},
    "PyMAF": {"pve_mm": 87.0, "mpjpe_mm": 74.2, "pa_mpjpe_mm": 45.3},
    "FastMETRO": {"pve_mm": 84.1, "mpjpe_mm": 73.5, "pa_mpjpe_mm": 44.6},
    "DeFormer HRNet-W48": {"pve_mm": 82.6, "mpjpe_mm": 72.9, "pa_mpjpe_mm": 44.3},
}
"""As printed in DeFormer's table (CVPR 2023), which mixes SPIN's and PyMAF's protocol into METRO's."""
_3DPW_FILES = "sequenceFiles and imageFiles of 3DPW (https://virtualhumans.mpi-inf.mpg.de/3DPW), " + SMPL_FILES
_OWN = JOINT_SETS["coco17"]

PROTOCOLS: dict[str, Protocol] = {
    "h36m-p2": Protocol(
        "Human3.6M, protocol 2: S9 and S11 before the frontal camera, motion-captured joints",
        JOINT_SETS["j14"],
        regressor="h36m",
        truth="joints",
        frames="subjects 9 and 11, camera 60457274, every 5th frame",
        keep=_h36m_p2,
        undefined=_MVE_WITHOUT_MESH,
        dataset={"reader": "human36m", "split": "test"},
        files="Human3.6M's images (http://vision.imar.ro/human3.6m) and annotations in Pose2Mesh's json, " + SMPL_FILES,
        group="action",
        paper=_H36M,
    ),
    "3dpw-metro": Protocol(
        "3DPW test as the METRO line measures it: meshes of the neutral body, root between the hips",
        JOINT_SETS["j14"],
        regressor="h36m",
        keep=_valid,
        dataset={"reader": "threedpw", "split": "test"},
        files=_3DPW_FILES,
        group="sequence",
        paper=_3DPW,
    ),
    "3dpw-spin": Protocol(
        "3DPW test as SPIN, PyMAF and HMR2 measure it: meshes of the person's gender, root at the regressed pelvis",
        JOINT_SETS["j14"],
        regressor="h36m",
        gendered=True,
        root=("pelvis",),
        frames="those with a valid camera pose (campose_valid)",
        keep=_valid,
        dataset={"reader": "threedpw", "split": "test"},
        files=_3DPW_FILES + ", the male and female bodies too",
        group="sequence",
    ),
    "emdb-1": Protocol(
        "EMDB 1: 17 sequences, the 24 joints of SMPL, meshes of the person's gender",
        JOINT_SETS["smpl24"],
        regressor="smpl24",
        gendered=True,
        frames="good frames of the sequences marked emdb1",
        keep=_valid,
        dataset={"reader": "emdb", "split": "emdb1"},
        files="the P0 to P9 folders of EMDB (https://eth-ait.github.io/emdb), " + SMPL_FILES,
        group="sequence",
    ),
    "synthetic": Protocol(
        "our hold-out of renders, 250 clean and 250 hard people of unseen recordings: nearest to J14 of our joints",
        _OWN,
        files="OpenGL, and for recorded poses ../shared/data/mocap or another --data",
    ),
    "coco-2d": Protocol(
        "photos of COCO: PCK of the mesh's projected joints at 0.1 and 0.05 of the person's box",
        _OWN,
        undefined={"pa_mpjpe_mm": "photos have 2D labels alone"},
        files="coco_people.json with its photos: --coco, or under --data",
    ),
    "pose2sim": Protocol(
        "a person before four calibrated cameras: against triangulated keypoints, and view against view",
        _OWN,
        undefined={"pve_mm": "there is no reference mesh"},
        files="the package pose2sim (PyPI, BSD-3): --pose2sim Pose2Sim/Demo_SinglePerson",
    ),
}


def protocol(name: str) -> Protocol:
    """Errors: `InputError` that lists the names."""
    if name not in PROTOCOLS:
        raise InputError(f"unknown protocol '{name}': use one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
