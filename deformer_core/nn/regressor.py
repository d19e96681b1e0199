"""The initial reconstruction: 2D keypoints (and a glance at the image) lifted to a posed body and a camera.

The paper calls it the 3D regressor and does not describe it. Ours predicts bone rotations and shape
coefficients and poses the body with them, so bones keep their lengths from the start, and it lives mostly on
keypoints, so it can be trained on poses without images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.geometry.rotations import rotation_from_6d
from deformer_core.nn.deformable_attention import Sampler
from deformer_core.nn.precision import full_precision
from deformer_core.nn.zero import zero_ended_mlp

NUM_KEYPOINTS = 17
TRUSTED_SCORE = 0.3
"""Keypoints with this score or more count fully, below in proportion."""
PRIOR_EXTENT = 0.4
"""Root mean square distance of keypoints from their centre, in crop half-sides, where none is known."""
PRIOR_SCALE = 1.6
"""1 / metres: the inverse of that distance on a body."""


class NormalizedKeypoints(NamedTuple):
    """Keypoints, and the same freed of their place and size in the crop."""

    positions: Tensor
    """(B, 17, 2) as given, crop coordinates."""
    points: Tensor
    """(B, 17, 2) in extents from the centre, 0 where the score is 0."""
    gates: Tensor
    """(B, 17) how far each is trusted, 0..1."""
    center: Tensor
    """(B, 2) crop coordinates."""
    extent: Tensor
    """(B, 1) crop half-sides, > 0."""


def normalize_keypoints(keypoints: Tensor) -> NormalizedKeypoints:
    """keypoints: (B, 17, 3) x, y in crop coordinates and a score. Without any, the prior extent."""
    xy, score = keypoints[..., :2], keypoints[..., 2]
    gates = (score / TRUSTED_SCORE).clamp(0, 1)
    weights = gates[..., None]
    total = weights.sum(1) + 0.1  # a tenth of a keypoint's worth of prior keeps the empty crop finite
    center = (weights * xy).sum(1) / total
    squares = ((xy - center[:, None]) ** 2).sum(-1, keepdim=True)
    extent = (((weights * squares).sum(1) + 0.1 * PRIOR_EXTENT**2) / total).sqrt()
    points = weights * (xy - center[:, None]) / extent[:, None]
    return NormalizedKeypoints(xy, points, gates, center, extent)


def sample_evidence(maps: Sequence[Tensor], keypoints: Tensor, sampler: Sampler) -> Tensor:
    """What a backbone's two deepest maps show at the keypoints.

    2D positions alone leave open which way a body faces; the image around them mostly does not.
    maps: a backbone's (B, C, h, w); keypoints: (B, 17, 3). Returns (B, 17, C3 + C4).
    """
    places = keypoints[..., :2].transpose(1, 2)[:, None, None, None]
    ones = torch.ones_like(places[..., 0, :])
    sampled = [sampler([level], places, ones).transpose(1, 2) for level in maps[2:]]
    return torch.cat(sampled, -1)


class ResidualBlock(nn.Module):
    """x + MLP(LayerNorm(x))."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class BodyRegressor(nn.Module):
    """Keypoints, box and pooled image features to a posed body.

    level: the mesh level to pose; pooled_channels: length of the backbone's global vector; pooled_features:
    how many numbers are made of it (0: it is ignored); evidence_channels: of `sample_evidence`;
    keypoint_features: how many numbers are made of it at each keypoint (0: it is ignored); located: whether joints
    that `nn.volume` has located are read; dropout: on those numbers and within the blocks.
    """

    def __init__(
        self,
        topology: BodyTopology,
        pooled_channels: int,
        hidden: int = 512,
        blocks: int = 3,
        pooled_features: int = 32,
        evidence_channels: int = 0,
        keypoint_features: int = 0,
        located: bool = False,
        dropout: float = 0.1,
        level: str = "coarse",
    ) -> None:
        super().__init__()
        self.level = level
        self.body = ParametricBody(topology, (level,))
        self.pooled_features = pooled_features
        if pooled_features:
            self.glance = nn.Sequential(
                nn.LayerNorm(pooled_channels),
                nn.Linear(pooled_channels, pooled_features),
                nn.Dropout(dropout),
            )
        self.look: nn.Sequential | None = None
        if keypoint_features:
            self.look = nn.Sequential(
                nn.LayerNorm(evidence_channels),
                nn.Linear(evidence_channels, keypoint_features),
                nn.GELU(),
                nn.Dropout(dropout),
            )
            # Starts at zero: what keypoints alone say is kept until the image is understood.
            self.join = nn.Linear(NUM_KEYPOINTS * keypoint_features, hidden, bias=False)
            nn.init.zeros_(self.join.weight)
        self.place = zero_ended_mlp(len(topology.joint_names) * 4, hidden // 2, hidden) if located else None
        inputs = NUM_KEYPOINTS * 5 + 2 + 1 + 3 + pooled_features
        self.trunk = nn.Sequential(
            nn.Linear(inputs, hidden),
            *(ResidualBlock(hidden, dropout) for _ in range(blocks)),
            nn.LayerNorm(hidden),
        )
        self.rotations = _small_linear(hidden, self.body.n_bones * 6)
        self.shape = _small_linear(hidden, self.body.n_shape)
        self.camera = _small_linear(hidden, 3)
        self.register_buffer("identity", torch.tensor([1.0, 0, 0, 0, 1, 0]), persistent=False)

    def forward(
        self,
        keypoints: Tensor,
        box: Tensor,
        pooled: Tensor | None = None,
        evidence: Tensor | None = None,
        located: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Reconstruct.

        keypoints: (B, 17, 3) x, y in crop coordinates and score; box: (B, 3), see `geometry.camera`; pooled:
        (B, pooled_channels), evidence (B, 17, evidence_channels) of `sample_evidence` and located (B, J, 4) of
        `JointVolume`, x and y in crop coordinates, or None for samples without an image. Returns
        - `rotations` (B, R, 3, 3) of the rig's bones, the first the global orientation; `shape` (B, S);
        - `joints` (B, 23, 3) and `vertices_<level>` (B, V, 3), metres, model space;
        - `camera` (B, 3) = (s, tx, ty).
        """
        known = normalize_keypoints(keypoints)
        raw = known.positions * known.gates[..., None]
        parts = [raw.flatten(1), known.points.flatten(1), known.gates, known.center, known.extent.log(), box]
        if self.pooled_features:
            absent = raw.new_zeros(raw.shape[0], self.pooled_features)
            parts.append(absent if pooled is None else self.glance(pooled))
        features = self.trunk[0](torch.cat(parts, -1))
        if self.look is not None and evidence is not None:
            features = features + self.join((self.look(evidence) * known.gates[..., None]).flatten(1))
        if self.place is not None and located is not None:
            places = (located[..., :2] - known.center[:, None]) / known.extent[:, None]
            features = features + self.place(torch.cat([places, located[..., 2:]], -1).flatten(1))
        features = self.trunk[1:](features)
        with full_precision(box.device):
            features = features.to(box.dtype)
            rotations = rotation_from_6d(self.rotations(features).unflatten(-1, (-1, 6)) + self.identity)
            shape = self.shape(features)
            posed = self.body(rotations, shape)
            camera = self._place(self.camera(features), known)
        return {
            "rotations": rotations,
            "shape": shape,
            "joints": posed["joints"],
            f"vertices_{self.level}": posed[self.level],
            "camera": camera,
        }

    @staticmethod
    def _place(numbers: Tensor, known: NormalizedKeypoints) -> Tensor:
        """Camera from numbers relative to the keypoints: moving or scaling those moves or scales it."""
        scale = PRIOR_SCALE * known.extent * numbers[:, :1].clamp(-3, 3).exp()
        pelvis = known.center + known.extent * numbers[:, 1:]
        return torch.cat([scale, pelvis / scale], -1)


def _small_linear(inputs: int, outputs: int) -> nn.Linear:
    """A head that starts near zero: near the template's pose, the mean shape, the keypoints' own camera."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.1 / math.sqrt(inputs))
    nn.init.zeros_(layer.bias)
    return layer
