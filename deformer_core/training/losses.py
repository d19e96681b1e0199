"""Losses and their weights. The model knows neither.

Every term is a mean per person first, then a mean over the people who have that label. Terms on people with 3D
labels and terms on people with 2D labels alone are never averaged together: adding 2D-only people to a batch
leaves every 3D term as it was (and the other way round), so a weight means the same whatever the mixture. Places found
in the picture alone (`located_uv`, the backbone's keypoints) are the same task for both: means over all who have 2D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch, pose_labels
from deformer_core.geometry.camera import project_crop

Outputs = dict[str, Any]
Counts = dict[str, Tensor]
"""Scalars by kind of label: see `count_labels`."""


@dataclass(frozen=True)
class LossConfig:
    """Weight of each term; 0 leaves it out. Lengths in metres, 2D in half sides of the crop."""

    joints: float = 10.0
    """L1 of the joint tokens."""
    joints_mesh: float = 10.0
    """L1 of the joints regressed from the mesh."""
    vertices: float = 10.0
    """L1 of the layers' mesh (coarse, unless the queries are of another level)."""
    vertices_middle: float = 5.0
    vertices_full: float = 0.0
    """L1 of the finer meshes of the final output."""
    uv: float = 2.0
    """L1 of projected joints, tokens and mesh, for people with 3D labels."""
    uv_only: float = 2.0
    """The same for people who have 2D labels alone."""
    uv_clamp: float = 0.5
    """A 2D joint further off than this pulls no more: a wrong label must not bend a body."""
    edges: float = 20.0
    """L1 of edge lengths, layers' mesh. Without it meshes come out crumpled."""
    normals: float = 0.1
    """Cosine of predicted edges with true face normals, layers' mesh (Pose2Mesh, ECCV 2020)."""
    camera: float = 1.0
    """L1 of log s and of tx, ty."""
    rotations: float = 1.0
    """L1 of rotation matrices, where a layer predicts them."""
    shape: float = 0.02
    """L1 of shape coefficients, where a layer predicts them."""
    shape_prior: float = 0.02
    """Mean square of the shape, people without 3D labels."""
    pose_prior: float = 0.05
    """Mean square of rotations' distance from the data's mean over the data's variance, people without 3D labels."""
    located_depth: float = 10.0
    """L1 of the depth of joints located in the volume, where a layer has them."""
    located_uv: float = 4.0
    """L1 of their places in the crop, joints in the crop alone."""
    backbone_keypoints: float = 0.3
    """`Backbone.keypoint_loss`, where the backbone learns."""
    earlier_layers: float = 0.3
    """Weight of every layer but the last, which has 1."""


def label_masks(batch: Batch) -> dict[str, Tensor]:
    """Who has which kind of label, (B,) of 0 and 1 each. Every term is a mean over the people of one of them."""
    has_3d = batch["has_3d"]
    in_2d = (batch["uv_weight"].sum(1) > 0).to(has_3d)
    return {
        "mesh": batch["has_mesh"],
        "camera": batch["has_camera"],
        "3d": has_3d,
        "flat": 1 - has_3d,
        "2d": in_2d,
        "2d_of_3d": in_2d * has_3d,
        "2d_alone": in_2d * (1 - has_3d),
    }


def count_labels(batch: Batch) -> Counts:
    """How many people have each kind of label, and how many there are ("people").

    Where a step's people are spread over parts, the sums of all parts' counts over the number of parts make the mean
    of the parts' losses the loss of the whole, however the labels are spread.
    """
    masks = label_masks(batch)
    return {"people": batch["has_3d"].new_tensor(len(batch["box"]))} | {name: m.sum() for name, m in masks.items()}


class LabelledMean:
    """`mean(per_person, kind)` over the people of a batch who have a kind of label, zero if nobody has it."""

    def __init__(self, batch: Batch, counts: Counts | None = None) -> None:
        """counts: to divide by, in place of the batch's own."""
        self.masks = label_masks(batch)
        self.counts = counts or count_labels(batch)

    def __call__(self, per_person: Tensor, kind: str) -> Tensor:
        count = self.counts[kind]
        return (per_person * self.masks[kind]).sum() / torch.where(count > 0, count, 1)


@dataclass(frozen=True)
class PosePrior:
    """mean: (R, 3, 3), variance: (R,) of the bones' rotation matrices over a set of poses; the root is left out."""

    mean: NDArray[np.float32]
    variance: NDArray[np.float32]

    @classmethod
    def of(cls, rotations: NDArray[np.float32]) -> PosePrior:
        """rotations: (N, R, 3, 3)."""
        mean = rotations.mean(0)
        variance = ((rotations - mean) ** 2).sum((2, 3)).mean(0)
        return cls(mean, np.maximum(variance, 1e-3))


class DeFormerLoss(nn.Module):
    """The training objective of the model, of its regressor alone and of the lifting baseline."""

    regressor: Tensor
    edges: Tensor
    faces: Tensor
    edge_faces: Tensor
    pose_mean: Tensor
    pose_variance: Tensor

    def __init__(
        self, config: LossConfig, topology: BodyTopology, prior: PosePrior | None = None, level: str = "coarse"
    ) -> None:
        """level: of the meshes that the layers give. prior: without one, the rest pose."""
        super().__init__()
        self.config, self.level = config, level
        self.finer = tuple(name for name in ("middle", "full") if getattr(config, f"vertices_{name}") > 0)
        self.body = ParametricBody(topology, (level,))
        self.body_of_all_levels = ParametricBody(topology, tuple(dict.fromkeys((level, *self.finer))))
        mesh = topology.levels[level]
        bones = len(topology.rig.bone_names)
        prior = prior or PosePrior(np.tile(np.eye(3, dtype=np.float32), (bones, 1, 1)), np.ones(bones, np.float32))
        self._constant("regressor", mesh.joint_regressor.dense())
        self._constant("edges", mesh.edges.astype(np.int64))
        self._constant("faces", mesh.faces.astype(np.int64))
        self._constant("edge_faces", faces_of_edges(mesh.edges, mesh.faces))
        self._constant("pose_mean", prior.mean[1:])
        self._constant("pose_variance", prior.variance[1:])

    def _constant(self, name: str, value: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, outputs: Outputs, batch: Batch, counts: Counts | None = None) -> dict[str, Tensor]:
        """Scalars by name, weights applied, and their sum "total".

        outputs: "layers", a list of dicts with `vertices_<level>` (B, V, 3), `camera` (B, 3) and, where a layer has
        them, `joints` (tokens, B, J, 3), `rotations` (B, R, 3, 3), `shape` (B, S); further `joints` and
        `vertices_<level>` of the final meshes, if any. batch: see `data.sample`; meshes are posed from the labels here.
        Each name is summed over the layers, weighted by `earlier_layers`. counts: see `LabelledMean`.
        """
        mean = LabelledMean(batch, counts)
        is_final = any(f"vertices_{finer}" in outputs for finer in self.finer)
        batch = pose_labels(batch, self.body_of_all_levels if is_final else self.body)
        total: dict[str, Tensor] = {}
        layers = outputs["layers"]
        for number, layer in enumerate(layers):
            share = 1.0 if number == len(layers) - 1 else self.config.earlier_layers
            _add(total, self._layer(layer, batch, mean), share)
        _add(total, self._final(outputs, batch, mean), 1.0)
        weighted = {name: value * getattr(self.config, name) for name, value in total.items()}
        return weighted | {"total": torch.stack(list(weighted.values())).sum()}

    def _layer(self, layer: Outputs, batch: Batch, mean: LabelledMean) -> dict[str, Tensor]:
        vertices, camera = layer[f"vertices_{self.level}"], layer["camera"]
        mesh_joints = self.regressor @ vertices
        terms = {
            "joints_mesh": mean(_joint_error(mesh_joints, batch), "3d"),
            "camera": mean(_camera_error(camera, batch["camera"]), "camera"),
        }
        terms |= self._mesh_terms(vertices, batch[f"vertices_{self.level}"], mean)
        _add(terms, self._reprojection(mesh_joints, camera, batch, mean), 1.0)
        if "joints" in layer:
            terms["joints"] = mean(_joint_error(layer["joints"], batch), "3d")
            _add(terms, self._reprojection(layer["joints"], camera, batch, mean), 1.0)
        if "located" in layer:
            terms |= self._located(layer["located"], batch, mean)
        if "rotations" in layer:
            terms |= self._rig_terms(layer["rotations"], layer["shape"], batch, mean)
        return terms

    def _final(self, outputs: Outputs, batch: Batch, mean: LabelledMean) -> dict[str, Tensor]:
        terms = {}
        for level in self.finer:
            key = f"vertices_{level}"
            if key in outputs:
                terms[key] = mean(_l1(outputs[key], batch[key]), "mesh")
        if "vertices_full" in outputs:
            terms["joints_mesh"] = mean(_joint_error(outputs["joints"], batch), "3d")
            _add(terms, self._reprojection(outputs["joints"], outputs["camera"], batch, mean), 1.0)
        return terms

    def _reprojection(self, joints: Tensor, camera: Tensor, batch: Batch, mean: LabelledMean) -> dict[str, Tensor]:
        distance = (project_crop(joints, camera, batch["box"]) - batch["uv"]).abs().clamp(max=self.config.uv_clamp)
        weight = batch["uv_weight"]
        per_person = (distance.sum(-1) * weight).sum(1) / (2 * weight.sum(1)).clamp(min=1e-6)
        return {"uv": mean(per_person, "2d_of_3d"), "uv_only": mean(per_person, "2d_alone")}

    def _located(self, located: Tensor, batch: Batch, mean: LabelledMean) -> dict[str, Tensor]:
        """located: (B, J, 4), see `nn.volume`."""
        off = (located[..., 2] - batch["joints"][..., 2]).abs() * batch["joints_weight"]
        depth = off.sum(1) / batch["joints_weight"].sum(1).clamp(min=1e-6)
        weight = batch["uv_weight"] * (batch["uv"].abs() < 1).all(-1)
        distance = (located[..., :2] - batch["uv"]).abs().sum(-1).clamp(max=2 * self.config.uv_clamp)
        flat = (distance * weight).sum(1) / (2 * weight.sum(1)).clamp(min=1e-6)
        return {"located_depth": mean(depth, "3d"), "located_uv": mean(flat, "2d")}

    def _edge_vectors(self, vertices: Tensor) -> Tensor:
        """(B, V, 3) to (E, B, 3). Rows of vertices first: a gather whose backward is then quick on a CPU."""
        rows = vertices.transpose(0, 1).flatten(1)
        vectors = rows.index_select(0, self.edges[:, 1]) - rows.index_select(0, self.edges[:, 0])
        return vectors.unflatten(1, (-1, 3))

    def _mesh_terms(self, vertices: Tensor, true: Tensor, mean: LabelledMean) -> dict[str, Tensor]:
        terms = {"vertices": mean(_l1(vertices, true), "mesh")}
        if self.config.edges <= 0 and self.config.normals <= 0:
            return terms
        vectors = self._edge_vectors(vertices)
        lengths = (vectors.square().sum(-1) + 1e-12).sqrt()
        error = (lengths - self._edge_vectors(true).norm(dim=-1)).abs().mean(0)
        # An edge of a collapsed face has no direction; below a millimetre its pull fades with its length.
        directions = vectors / lengths.clamp(min=1e-3)[..., None]
        a, b, c = (true.transpose(0, 1)[self.faces[:, corner]] for corner in range(3))
        normals = nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1)  # (F, B, 3)
        first, second = ((directions * normals[self.edge_faces[:, side]]).sum(-1).abs() for side in (0, 1))
        sines = (first + second).mean(0) / 2
        return terms | {"edges": mean(error, "mesh"), "normals": mean(sines, "mesh")}

    def _rig_terms(self, rotations: Tensor, shape: Tensor, batch: Batch, mean: LabelledMean) -> dict[str, Tensor]:
        strangeness = ((rotations[:, 1:] - self.pose_mean) ** 2).sum((2, 3)) / self.pose_variance
        return {
            "rotations": mean((rotations - batch["rotations"]).abs().mean((1, 2, 3)), "mesh"),
            "shape": mean((shape - batch["shape"]).abs().mean(1), "mesh"),
            "shape_prior": mean((shape**2).mean(1), "flat"),
            "pose_prior": mean(strangeness.mean(1), "flat"),
        }


def faces_of_edges(edges: NDArray[np.int32], faces: NDArray[np.int32]) -> NDArray[np.int64]:
    """(E, 2) the two faces at each edge; at a border, twice the one there is."""
    number = {(int(a), int(b)): row for row, (a, b) in enumerate(edges)}
    found: list[list[int]] = [[] for _ in edges]
    for face, corners in enumerate(faces.tolist()):
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
            found[number[min(a, b), max(a, b)]].append(face)
    return np.array([(at[0], at[-1]) for at in found], np.int64)


def _l1(predicted: Tensor, true: Tensor) -> Tensor:
    return (predicted - true).abs().mean((1, 2))


def _joint_error(predicted: Tensor, batch: Batch) -> Tensor:
    """(B,): L1 over the joints that each person has a 3D label of."""
    weight = batch["joints_weight"]
    return ((predicted - batch["joints"]).abs().mean(-1) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


def _camera_error(camera: Tensor, true: Tensor) -> Tensor:
    scale = camera[:, 0].clamp(min=1e-4).log() - true[:, 0].clamp(min=1e-4).log()
    return scale.abs() + (camera[:, 1:] - true[:, 1:]).abs().sum(1)


def _add(total: dict[str, Tensor], terms: dict[str, Tensor], share: float) -> None:
    for name, value in terms.items():
        total[name] = total[name] + share * value if name in total else share * value
