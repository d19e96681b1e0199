"""The mesh decoder: body tokens attend to each other and to the image, and correct the body layer by layer.

One layer, in the paper's terms, with X_t the current joints and vertices:

1. e = Phi(X_t), an embedding of the current reconstruction, is added to the queries x_q;
2. body sparse self-attention among all queries (BSSA);
3. deformable mesh cross-attention around the projections of X_t (DMA), and a feed-forward network;
4. dX_t = Psi(e (+) x_q), X_{t+1} = X_t + dX_t: the mesh alignment feedback loop.

Our choices: joints also embed the keypoint evidence and how far their projection is from it; the camera is
corrected along with X; X is detached between layers, each of which is supervised by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deformer_core.body.scap_cache import cached_scap
from deformer_core.body.topology import BodyTopology
from deformer_core.geometry.camera import project_crop
from deformer_core.nn.config import STRIDES, DeFormerConfig
from deformer_core.nn.deformable_attention import DeformableMeshAttention
from deformer_core.nn.precision import full_precision
from deformer_core.nn.regressor import NUM_KEYPOINTS, NormalizedKeypoints, normalize_keypoints
from deformer_core.nn.sparse_attention import BodySparseAttention, LinkedAttention
from deformer_core.nn.zero import zero_ended_mlp

REACH = 2.0
"""Reference points are held within this many crop half-sides of its centre."""


class ImageTokens(NamedTuple):
    """What the decoder sees of the image, all of the tokens' width."""

    maps: list[Tensor]
    """(B, dim, h, w) each."""
    pooled: Tensor
    """(B, dim)."""


class PyramidNeck(nn.Module):
    """Projects the backbone's maps and global vector to the tokens' width, once for all layers.

    Normalised, because the channels of different backbones differ in size by orders of magnitude.
    """

    def __init__(self, channels: Sequence[int], pooled_channels: int, config: DeFormerConfig) -> None:
        super().__init__()
        self.used = [STRIDES.index(stride) for stride in config.maps]
        self.maps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[i], config.dim, 1), nn.GroupNorm(config.heads, config.dim))
            for i in self.used
        )
        self.pooled = nn.Sequential(nn.Linear(pooled_channels, config.dim), nn.LayerNorm(config.dim))

    def forward(self, maps: Sequence[Tensor], pooled: Tensor) -> ImageTokens:
        projected = [project(maps[i]) for i, project in zip(self.used, self.maps, strict=True)]
        return ImageTokens(projected, self.pooled(pooled))


class Correction(nn.Module):
    """Psi: displacements of the body from its embedding and the queries; and a change of the camera."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.displace = zero_ended_mlp(2 * dim, dim, 3)
        self.adjust = zero_ended_mlp(dim, dim, 3)

    def forward(
        self, queries: Tensor, embedding: Tensor, camera: Tensor, n_joints: int
    ) -> tuple[Tensor, Tensor]:
        """queries, embedding: (B, S, dim), the joints first; camera: (B, 3).

        Returns dX (B, S, 3) and the new camera, scaled and with the body shifted in crop half-sides.
        """
        queries = self.norm(queries)
        displacement = self.displace(torch.cat([embedding, queries], -1))
        change = self.adjust(queries[:, :n_joints].mean(1))
        scale = camera[:, :1] * change[:, :1].clamp(-1, 1).exp()
        return displacement, torch.cat([scale, camera[:, 1:] + change[:, 1:] / scale], -1)


class DecoderLayer(nn.Module):
    """Phi, self-attention, attention to the image, a feed-forward network and, with `corrects`, Psi."""

    def __init__(self, config: DeFormerConfig, attend: LinkedAttention, corrects: bool) -> None:
        super().__init__()
        dim = config.dim
        self.embed = nn.Sequential(nn.Linear(3 + 2 + 3, dim), nn.GELU(), nn.Linear(dim, dim))
        self.evidence = nn.Linear(5, dim)
        self.norm_self = nn.LayerNorm(dim)
        self.attend_self = BodySparseAttention(dim, config.heads, attend)
        self.norm_image = nn.LayerNorm(dim)
        self.attend_image = DeformableMeshAttention(
            dim, config.heads, len(config.maps), config.points, config.sampling
        )
        self.ffn = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, config.ffn),
            nn.GELU(),
            nn.Linear(config.ffn, dim),
        )
        self.correct = Correction(dim) if corrects else None

    def embed_body(
        self, body: Tensor, references: Tensor, template: Tensor, known: NormalizedKeypoints
    ) -> Tensor:
        """Phi. body: (B, S, 3); references: (B, S, 2), its projections; template: (S, 3). To (B, S, dim)."""
        embedding = self.embed(torch.cat([body, references, body - template], -1))
        # The first slots hold the joints, and the first joints are the keypoints.
        miss = known.gates[..., None] * (known.positions - references[:, :NUM_KEYPOINTS])
        evidence = self.evidence(torch.cat([known.points, miss, known.gates[..., None]], -1))
        return embedding + nn.functional.pad(evidence, (0, 0, 0, body.shape[1] - NUM_KEYPOINTS))

    def forward(
        self, queries: Tensor, embedding: Tensor, references: Tensor, image: ImageTokens | None
    ) -> Tensor:
        """queries, embedding: (B, S, dim); references: (B, S, 2). Returns the new queries."""
        queries = queries + embedding
        queries = queries + self.attend_self(self.norm_self(queries))
        if image is not None:
            queries = queries + self.attend_image(self.norm_image(queries), references, *image)
        return queries + self.ffn(queries)


class MeshDecoder(nn.Module):
    """All layers, from the initial reconstruction to the last one.

    channels, pooled_channels: the backbone's. Tokens live in the slots of the body's SCAP.
    """

    order: Tensor
    vertex_slots: Tensor
    template: Tensor
    pelvis: Tensor

    def __init__(
        self, topology: BodyTopology, config: DeFormerConfig, channels: Sequence[int], pooled_channels: int
    ) -> None:
        super().__init__()
        self.level, self.zoom = config.query_level, config.zoom
        self.checkpointing = config.checkpointing
        mesh = topology.levels[self.level]
        scap = cached_scap(topology, self.level, config.rings)
        self.n_joints, self.n_registers = scap.n_joints, scap.n_registers
        head = scap.n_joints + scap.n_registers
        regressor = mesh.joint_regressor
        template = np.concatenate(
            [regressor.apply(mesh.vertices), np.zeros((scap.n_registers, 3), np.float32), mesh.vertices]
        )
        pelvis = np.zeros(scap.n_slots, np.float32)
        pelvis[scap.slots[head:]] = regressor.dense()[list(topology.hips)].mean(0)
        self._constant("order", scap.order)
        self._constant("vertex_slots", scap.slots[head:])
        self._constant("template", template[scap.order])
        self._constant("pelvis", pelvis)

        self.neck = PyramidNeck(channels, pooled_channels, config)
        self.tokens = nn.Parameter(torch.randn(scap.n_tokens, config.dim) * 0.02)
        self.embed_template = nn.Linear(3, config.dim)
        attend = LinkedAttention(scap if config.sparse else scap.unrestricted(), config.attention)
        self.layers = nn.ModuleList(
            DecoderLayer(config, attend, corrects=config.feedback or layer == config.layers - 1)
            for layer in range(config.layers)
        )

    def _constant(self, name: str, value: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(
        self, initial: dict[str, Tensor], image: ImageTokens | None, keypoints: Tensor, box: Tensor
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Refine a reconstruction.

        initial: `joints` (B, J, 3), `vertices_<level>` (B, V, 3), `camera` (B, 3) of the regressor; image:
        `PyramidNeck`'s output, or None for samples without an image; keypoints: (B, 17, 3); box: (B, 3).
        Returns the reconstructions after each correcting layer, with the same keys (`joints` are the joint
        tokens' own), and the last queries of joints and vertices (B, J + V, dim).
        """
        queries = (self.tokens[self.order] + self.embed_template(self.template)).expand(box.shape[0], -1, -1)
        body, camera = self._to_slots(initial), initial["camera"].detach()
        known = normalize_keypoints(keypoints)
        outputs = []
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            with full_precision(box.device):
                references = project_crop(body, camera, box).clamp(-REACH, REACH)
            embedding = layer.embed_body(body, references, self.template, known)
            inputs = (queries, embedding, on_maps(references, self.zoom), image)
            again = self.checkpointing and self.training
            queries = checkpoint(layer, *inputs, use_reentrant=False) if again else layer(*inputs)
            if layer.correct is None:
                continue
            displacement, moved_camera = layer.correct(queries, embedding, camera, self.n_joints)
            with full_precision(box.device):
                moved = body + displacement
                # The origin is the middle of the hips, as regressed from the vertices.
                moved = moved - (self.pelvis @ moved)[:, None]
            outputs.append(
                {
                    "joints": moved[:, : self.n_joints],
                    f"vertices_{self.level}": moved[:, self.vertex_slots],
                    "camera": moved_camera,
                }
            )
            body, camera = moved.detach(), moved_camera.detach()
        return outputs, torch.cat([queries[:, : self.n_joints], queries[:, self.vertex_slots]], 1)

    def _to_slots(self, initial: dict[str, Tensor]) -> Tensor:
        """(B, S, 3), registers at the pelvis, without gradient."""
        joints, vertices = initial["joints"], initial[f"vertices_{self.level}"]
        registers = joints.new_zeros(joints.shape[0], self.n_registers, 3)
        return torch.cat([joints, registers, vertices], 1).detach()[:, self.order]


def on_maps(places: Tensor, zoom: float) -> Tensor:
    """Places (B, N, 2 or more) of the crop, x and y first, in coordinates of maps of its 1 / zoom central columns."""
    return places if zoom == 1 else torch.cat([places[..., :1] * zoom, places[..., 1:]], -1)


def from_maps(places: Tensor, zoom: float) -> Tensor:
    """The inverse of `on_maps`."""
    return on_maps(places, 1 / zoom)
