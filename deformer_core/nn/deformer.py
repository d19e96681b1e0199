"""DeFormer: a crop of a person in, a dense body mesh and its camera out.

Yoshiyasu, "Deformable Mesh Transformer for 3D Human Mesh Recovery", CVPR 2023: a decoder-only transformer
from a feature pyramid to mesh vertices. Published without code; where its slides are silent, the choice is
ours and marked so at its place.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deformer_core.body.assets import load_body
from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.nn.backbones import MOVENETS, Backbone, BackboneOutput, build_backbone
from deformer_core.nn.blend import Blend
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.decoder import MeshDecoder, from_maps, on_maps
from deformer_core.nn.deformable_attention import SAMPLERS
from deformer_core.nn.regressor import BodyRegressor, sample_evidence
from deformer_core.nn.volume import JointVolume
from deformer_core.nn.zero import zero_ended_mlp, zero_linear

log = logging.getLogger(__name__)

CORRECTION_WIDTH = 32
"""Hidden width of the dense recovery's correction. Our choice."""


class DenseRecovery(nn.Module):
    """Coarse vertices and queries to all levels.

    Vertices are upsampled by the body's fixed matrices; where they come from the coarse level, the middle one
    gets a learned correction from the queries, upsampled alike, and from what is learned of each vertex (our
    choice). As in the paper, a global scaling is predicted from the queries.
    """

    def __init__(self, topology: BodyTopology, config: DeFormerConfig) -> None:
        super().__init__()
        self.names = LEVELS[LEVELS.index(config.query_level) :]
        self.upsample = nn.ModuleDict({name: Blend(topology.upsample[name]) for name in self.names[1:]})
        self.scale = zero_ended_mlp(config.dim, config.dim, 1)
        self.corrects = config.query_level == "coarse" and config.correction
        if self.corrects:
            n_vertices = len(topology.levels["middle"].vertices)
            # An MLP on (upsampled query, vertex embedding), its first layer taken before the upsampling.
            self.query_features = nn.Linear(config.dim, CORRECTION_WIDTH)
            self.vertex_features = nn.Parameter(torch.randn(n_vertices, CORRECTION_WIDTH) * 0.02)
            self.correct = zero_linear(CORRECTION_WIDTH, 3)

    def forward(self, vertices: Tensor, queries: Tensor, n_joints: int) -> dict[str, Tensor]:
        """vertices: (B, V, 3) of the query level; queries: (B, J + V, dim). Returns {level: (B, V', 3)}."""
        vertices = vertices * self.scale(queries.mean(1)).clamp(-1, 1).exp()[:, None]
        levels = {self.names[0]: vertices}
        for name in self.names[1:]:
            vertices = self.upsample[name](vertices)
            if name == "middle" and self.corrects:
                features = self.upsample[name](self.query_features(queries[:, n_joints:]))
                vertices = vertices + self.correct(F.gelu(features + self.vertex_features))
            levels[name] = vertices
        return levels


def configured_backbone(config: DeFormerConfig, pretrained: bool = True) -> Backbone:
    """The backbone of a configuration, see `build_backbone`. One without weights is random, with a warning."""
    weights = config.backbone_weights if pretrained else None
    if pretrained and weights is None and config.backbone not in MOVENETS:
        log.warning("Backbone %s starts from random weights: backbone_weights names no file", config.backbone)
        pretrained = False
    return build_backbone(config.backbone, pretrained, weights, config.image_size, config.image_width)


class DeFormer(nn.Module):
    """The whole model. Without a `backbone`, the configured one is built with random weights."""

    def __init__(
        self, config: DeFormerConfig, topology: BodyTopology, backbone: Backbone | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.hips = list(topology.hips)
        self.backbone = configured_backbone(config, pretrained=False) if backbone is None else backbone
        self.regressor = BodyRegressor(
            topology,
            self.backbone.pooled_channels,
            hidden=config.regressor_hidden,
            blocks=config.regressor_blocks,
            pooled_features=config.pooled_features,
            evidence_channels=sum(self.backbone.channels[2:]),
            keypoint_features=config.keypoint_features,
            located=config.volume_width > 0,
            dropout=config.dropout,
            level=config.query_level,
        )
        self.volume: JointVolume | None = None
        if config.volume_width:
            self.volume = JointVolume(self.backbone.channels[2:], config.volume_width, len(topology.joint_names))
        self.decoder = MeshDecoder(topology, config, self.backbone.channels, self.backbone.pooled_channels)
        self.recovery = DenseRecovery(topology, config)
        self.regress_joints = Blend(topology.levels["full"].joint_regressor)

    @classmethod
    def from_config(cls, config: DeFormerConfig, pretrained_backbone: bool = True) -> DeFormer:
        """The model with its body and backbone by name. Errors: `InputError`, see `load_body`, `build_backbone`."""
        return cls(config, load_body(config.body), configured_backbone(config, pretrained_backbone))

    def forward(self, images: Tensor, box: Tensor) -> dict[str, Tensor | list[dict[str, Tensor]]]:
        """Recover the body in each crop: `decode` of the backbone's output.

        images: (B, 3, H, W) float32 RGB in 0..255; box: (B, 3), see `geometry.camera`.
        """
        return self.decode(self.backbone(images), box)

    def regress(self, features: BackboneOutput, box: Tensor) -> dict[str, Tensor]:
        """The initial reconstruction alone, see `BodyRegressor`, with `located` (B, J, 4) of `JointVolume` where the
        model has one, x and y in crop coordinates. features, box: as of `decode`."""
        if not features.maps:
            return self.regressor(features.keypoints, box)
        evidence = None
        if self.config.keypoint_features:
            places = on_maps(features.keypoints, self.config.zoom)
            evidence = sample_evidence(features.maps, places, SAMPLERS[self.config.sampling])
        if self.volume is None:
            return self.regressor(features.keypoints, box, features.pooled, evidence)
        located = from_maps(self.volume(*features.maps[2:]), self.config.zoom)
        initial = self.regressor(features.keypoints, box, features.pooled, evidence, located)
        return initial | {"located": located}

    def decode(self, features: BackboneOutput, box: Tensor) -> dict[str, Tensor | list[dict[str, Tensor]]]:
        """Recover the body from a backbone's output, which may have been kept from before.

        features: as of `Backbone`; with `maps` empty, the samples have no image, only keypoints. box: (B, 3).
        All points are in metres in model space: the axes of the crop's virtual camera, the middle of the hip
        joints at the origin. Returns

        - `vertices_coarse` (B, 615, 3), `vertices_middle` (B, 1229, 3), `vertices_full` (B, 12272, 3) for the
          default body; levels coarser than the queries are left out;
        - `joints` (B, 23, 3), regressed from the full mesh;
        - `camera` (B, 3) = (s, tx, ty), see `geometry.camera`;
        - `keypoints` (B, 17, 3), the backbone's own;
        - `layers`, a list of reconstructions, the initial one and that of each correcting decoder layer,
          each with `joints` (B, 23, 3) (the joint tokens' own), `vertices_<query level>` and `camera`; the
          first also with `rotations` (B, R, 3, 3), `shape` (B, S) and what else `regress` gives.
        """
        seen = len(features.maps) > 0
        initial, image = self.regress(features, box), None
        if seen:
            image = self.decoder.neck(features.maps, features.pooled)
        corrected, queries = self.decoder(initial, image, features.keypoints, box)
        last = corrected[-1]
        n_joints = last["joints"].shape[1]
        levels = self.recovery(last[f"vertices_{self.config.query_level}"], queries, n_joints)
        joints = self.regress_joints(levels["full"])
        pelvis = joints[:, self.hips].mean(1, keepdim=True)
        # The decoder has centred the queries' own level; the correction may have shifted the finer ones.
        centred = {
            name: vertices if name == self.config.query_level else vertices - pelvis
            for name, vertices in levels.items()
        }
        return {
            **{f"vertices_{name}": vertices for name, vertices in centred.items()},
            "joints": joints - pelvis,
            "camera": last["camera"],
            "keypoints": features.keypoints,
            "layers": [initial, *corrected],
        }
