"""Endless people without an image: posed bodies before drawn cameras, with a network's keypoints bootstrapped."""

from __future__ import annotations

import numpy as np
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.data.keypoint_errors import DrawnErrors, KeypointErrors
from deformer_core.data.sample import Batch, concatenate
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.data.synthetic.scene import SceneConfig, sample_scene
from deformer_core.geometry.camera import camera_from_translation, crop_rotation, project_crop

CHUNK = 64
"""People drawn together. Whoever needs some of a batch draws whole chunks, so that all see the same people."""


class PoseOnlyBatches:
    """`batches(step)` is a batch of `count` people that depends on the seed and the step alone.

    Cameras and crops are those of the renderer. Keys: see `data.sample`, all labels known.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        sampler: PoseSampler,
        body: ParametricBody,
        errors: KeypointErrors | DrawnErrors,
        scene: SceneConfig | None = None,
    ) -> None:
        self.seed, self.count = seed, count
        self.sampler, self.body, self.errors = sampler, body, errors
        self.scene = scene or SceneConfig()

    def __call__(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """People start to stop of the step's, all by default."""
        stop = self.count if stop is None else stop
        first, last = start // CHUNK, -(-stop // CHUNK)
        drawn = concatenate(self._chunk(step, number) for number in range(first, last))
        return {key: value[start - first * CHUNK : stop - first * CHUNK] for key, value in drawn.items()}

    @torch.no_grad()
    def _chunk(self, step: int, number: int) -> Batch:
        rng = np.random.default_rng([self.seed, step, number])
        count = min(CHUNK, self.count - number * CHUNK)
        local, shape, _ = self.sampler.sample(rng, count)
        rotations, shapes = torch.from_numpy(local), torch.from_numpy(shape)
        world = self.body(rotations, shapes)
        scenes = [sample_scene(rng, self.scene, vertices) for vertices in world["coarse"].numpy()]
        box = torch.from_numpy(np.stack([scene.box() for scene in scenes]))
        view = torch.from_numpy(np.stack([scene.view for scene in scenes]).astype(np.float32))
        place = torch.from_numpy(np.stack([scene.translation for scene in scenes]).astype(np.float32))

        to_virtual = crop_rotation(box).transpose(1, 2)
        turn = to_virtual @ view
        rotations[:, 0] = turn @ rotations[:, 0]
        joints = world["joints"] @ turn.transpose(1, 2)
        camera = camera_from_translation((to_virtual @ place[:, :, None])[:, :, 0], box)
        uv = project_crop(joints, camera, box)
        ones = torch.ones(count)
        return {
            "box": box,
            "keypoints": torch.from_numpy(self.errors.apply(rng, uv[:, :17].numpy())),
            "joints": joints,
            "joints_weight": torch.ones(count, joints.shape[1]),
            "rotations": rotations,
            "shape": shapes,
            "camera": camera,
            "uv": uv,
            "uv_weight": torch.ones(count, uv.shape[1]),
            "has_3d": ones,
            "has_mesh": ones,
            "has_camera": ones,
        }
