"""A protocol carried out: people of a reader, a model, one table of figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation, crop
from deformer_core.data.joint_sets import JOINT_SETS, select
from deformer_core.errors import InputError
from deformer_core.geometry.camera import crop_rotation
from deformer_core.training.gather import gather_rows, share
from deformer_core.training.metrics import (
    FloatArray,
    auc_3d,
    joint_errors,
    mpjpe,
    pa_mpjpe,
    pck_3d,
    per_group,
    per_joint,
    procrustes,
)
from deformer_core.training.predictions import BATCH, Model
from deformer_core.training.progress import progress
from deformer_core.training.protocols import Protocol

H36M_ORDERS = ("h36m17", "h36m17_spin")
"""The joint sets of the two regressors in use, which differ in which leg comes first."""
SWAP_GAIN = 0.8
"""Legs are taken for exchanged when exchanging them back leaves less than this share of PA-MPJPE."""
SWAP_PEOPLE = 10
"""Fewer people tell nothing of that."""
Bodies = Callable[[str], BodyTopology]
"""The body of a gender, "male" or "female"."""


def run_protocol(
    protocol: Protocol,
    annotations: Sequence[Annotation],
    model: Model,
    image_size: int,
    topology: BodyTopology,
    gendered: Bodies | None = None,
) -> dict[str, Any]:
    """All figures of the protocol: means, `per_joint` and `per_group`; what is undefined says why.

    In a process group every process takes its share of the people, and all get the same table, that of one process.
    gendered: needed where `protocol.gendered`.

    Errors: `InputError` if the body lacks the regressor, nobody is chosen, a label is missing, or legs are exchanged.
    """
    people = [annotation for annotation in annotations if protocol.keep(annotation)]
    if not people:
        raise InputError(f"none of the {len(annotations)} people are of the protocol ({protocol.frames}): other files?")
    regress = Regressor(protocol, topology)
    truth = Truth(protocol, topology, regress, gendered)
    n_joints, rows, mine = len(protocol.joints), [], share(len(people))
    with progress(0, len(mine), "people") as bar:
        for chunk in np.split(mine, np.arange(BATCH, len(mine), BATCH)):
            samples = [crop(people[index], topology, image_size) for index in chunk]
            images = np.stack([sample.image for sample in samples if sample.image is not None])
            vertices = model(images, np.stack([sample.box for sample in samples]))["vertices_full"]
            for index, sample, mesh in zip(chunk, samples, vertices):
                true_joints, true_mesh = truth(people[index], sample.box)
                joints, root = regress(mesh)
                pve = np.nan if true_mesh is None else mpjpe((mesh - root)[None], true_mesh[None])[0]
                rows.append(np.concatenate([(joints - root).ravel(), true_joints.ravel(), [pve]]))
            bar.update(len(chunk))
    gathered, table = gather_rows(mine, 1000 * np.stack(rows))
    predicted, true = (table[:, part].reshape(-1, n_joints, 3) for part in np.split(np.arange(6 * n_joints), 2))
    groups = [str(people[index].tags.get(protocol.group, "")) for index in gathered]
    return summarize(protocol, predicted, true, table[:, -1], groups)


def summarize(
    protocol: Protocol, predicted: FloatArray, true: FloatArray, pve: FloatArray, groups: Sequence[str]
) -> dict[str, Any]:
    """The table of all people. predicted, true: (N, J, 3) mm about the root; pve: (N,) mm, NaN without a mesh."""
    check_legs(predicted, true, protocol.joints)
    figures = {"mpjpe_mm": mpjpe(predicted, true), "pa_mpjpe_mm": pa_mpjpe(predicted, true)}
    if "pve_mm" not in protocol.undefined:
        figures["pve_mm"] = pve
    shares = {"pck_3d": pck_3d(predicted, true), "auc_3d": auc_3d(predicted, true)}
    table: dict[str, Any] = {"people": len(predicted)}
    table |= {name: float(values.mean()) for name, values in (figures | shares).items()}
    table |= {name: f"undefined: {why}" for name, why in protocol.undefined.items()}
    aligned = joint_errors(procrustes(predicted, true), true)
    table["per_joint"] = {
        "mpjpe_mm": per_joint(joint_errors(predicted, true), protocol.joints),
        "pa_mpjpe_mm": per_joint(aligned, protocol.joints),
    }
    if any(groups):
        table["per_group"] = per_group(figures, groups)
    return table


class Regressor:
    """The protocol's joints and root from a mesh."""

    def __init__(self, protocol: Protocol, topology: BodyTopology) -> None:
        if protocol.regressor not in topology.extra_regressors:
            raise InputError(
                f"body '{topology.name}' has no joint regressor '{protocol.regressor}': evaluate a checkpoint "
                f"trained on SMPL; needed: {protocol.files}"
            )
        self.blend = topology.extra_regressors[protocol.regressor]
        names = JOINT_SETS["smpl24"]
        if protocol.regressor == "h36m":
            names = JOINT_SETS[leg_order(self.blend.apply(topology.levels["full"].vertices))]
        self.joints, self.root = select(names, protocol.joints), select(names, protocol.root)

    def __call__(self, vertices: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(V, 3) of the full level to (J, 3) and (3,)."""
        points = self.blend.apply(np.asarray(vertices, np.float32))
        return points[self.joints], points[self.root].mean(0)


def leg_order(template_joints: FloatArray) -> str:
    """Which of `H36M_ORDERS` a regressor has, by where it puts the legs of the template, which faces the camera.

    template_joints: (17, 3). The person's left is at positive x. Errors: `InputError` if it is neither order.
    """
    for order in H36M_ORDERS:
        names = JOINT_SETS[order]
        sides = [1 if name.startswith("left") else -1 for name in names if name.startswith(("left", "right"))]
        rows = [row for row, name in enumerate(names) if name.startswith(("left", "right"))]
        if (template_joints[rows, 0] * sides > 0).all():
            return order
    raise InputError("the regressor of Human3.6M's joints has neither of the known orders: give J_regressor_h36m.npy")


def check_legs(predicted: FloatArray, true: FloatArray, names: Sequence[str]) -> None:
    """Errors: `InputError` if the predictions fit much better with the legs of the labels exchanged."""
    if len(predicted) < SWAP_PEOPLE:
        return
    legs = ("hip", "knee", "ankle")
    swapped = list(range(len(names)))
    for a, b in ((names.index(f"left_{leg}"), names.index(f"right_{leg}")) for leg in legs):
        swapped[a], swapped[b] = b, a
    before, after = float(pa_mpjpe(predicted, true).mean()), float(pa_mpjpe(predicted, true[:, swapped]).mean())
    if after < SWAP_GAIN * before:
        raise InputError(
            f"PA-MPJPE falls from {before:.1f} to {after:.1f} mm when the labels' legs are exchanged: the labels or "
            "the regressor have the order of the other Human3.6M regressor"
        )


class Truth:
    """True joints (J, 3) and, where there are any, the true vertices (V, 3): metres about the root, in the axes of the
    crop's virtual camera, as predictions are."""

    def __init__(self, protocol: Protocol, topology: BodyTopology, regress: Regressor, gendered: Bodies | None) -> None:
        self.protocol, self.topology, self.regress = protocol, topology, regress
        self.gendered = gendered if protocol.gendered else None
        self.bodies: dict[str, ParametricBody] = {}

    def __call__(self, annotation: Annotation, box: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        to_full = crop_rotation(torch.from_numpy(box)[None])[0].numpy()
        if self.protocol.truth == "joints":
            joints = named(annotation, [*self.protocol.joints, *self.protocol.root], self.topology) @ to_full
            count = len(self.protocol.joints)
            return joints[:count] - joints[count:].mean(0), None
        body, _, gender = annotation.body.partition("_")  # smpl, or smpl_male
        if body != self.topology.name or annotation.rotations is None or annotation.shape is None:
            raise InputError(f"{annotation.source} has no mesh of body '{self.topology.name}': another reader or body?")
        with torch.no_grad():
            pose = torch.from_numpy(annotation.rotations)[None], torch.from_numpy(annotation.shape)[None]
            vertices = self._body(gender)(*pose)["full"][0].numpy() @ to_full
        joints, root = self.regress(vertices)
        return joints - root, vertices - root

    def _body(self, gender: str) -> ParametricBody:
        """Of the neutral body where the protocol says so, whatever body the labels were fitted with."""
        gender = gender if self.gendered else ""
        if gender not in self.bodies:
            topology = self.gendered(gender) if gender and self.gendered else self.topology
            self.bodies[gender] = ParametricBody(topology, ("full",))
        return self.bodies[gender]


def named(annotation: Annotation, names: Sequence[str], topology: BodyTopology) -> FloatArray:
    """(K, 3) joints by name, of the topology's or beside them. Errors: `InputError` naming one that is missing."""
    return np.stack(list(_named(annotation, names, topology)))


def _named(annotation: Annotation, names: Sequence[str], topology: BodyTopology) -> Iterator[FloatArray]:
    for name in names:
        if name in annotation.named_joints:
            yield annotation.named_joints[name]
            continue
        row = topology.joint_names.index(name) if name in topology.joint_names else -1
        known = annotation.joints is not None and row >= 0
        if known and annotation.joints_weight is not None:
            known = bool(annotation.joints_weight[row] > 0)
        if annotation.joints is None or not known:
            raise InputError(f"{annotation.source} has no 3D label of the joint '{name}', which the protocol evaluates")
        yield annotation.joints[row]
