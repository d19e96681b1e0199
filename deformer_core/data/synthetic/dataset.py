"""Rendered people as a dataset: sample `i` depends on the seed and on `i`, on nothing else.

Each sample is a dict of arrays (S is the image size, R the rig's bones, K the shape coefficients):

- `image` (S, S, 3) uint8, RGB, the crop.
- `box` (3,) the crop's, as `geometry.camera` defines it; `camera` (3,) = (s, tx, ty), so that `project_crop` of
  `vertices_coarse` or `joints` gives where they are drawn.
- `vertices_coarse` (V, 3), `joints` (23, 3): model space (the crop's virtual camera, pelvis at the origin).
- `joints_2d` (23, 2): crop coordinates in [-1, 1]; `joints_inside` (23,) bool: within the crop and the full
  image; `joints_visible` (23,) bool: inside and hidden by no other thing or person (their own body may).
- `rotations` (R, 3, 3), `shape` (K,): of `ParametricBody`. `rotations[0]` turns the body into the FULL camera's
  axes: `ParametricBody(rotations, shape)` + `translation` are full-camera coordinates, and
  `crop_rotation(box)^T` takes its vertices to model space.
- `translation` (3,): the pelvis in the full camera, metres. `intrinsics` (4,): fx, fy, cx, cy of the full image;
  `image_size` (2,): its width and height; `window` (3,): the crop's centre x, y and side in it, pixels.
- `truncated`, `occluded`, `clean` bool: clean is neither, with every joint in the crop. `companions` int, other people
  drawn.
- `background` int, number in the bank; `kind` int, of `poses.KINDS`; `index` int, `i`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.assets import load_body
from deformer_core.body.parametric import ParametricBody
from deformer_core.data.mocap import load_pose_bank
from deformer_core.data.synthetic import post
from deformer_core.data.synthetic.appearance import Appearance, sample_appearance, sample_light
from deformer_core.data.synthetic.backgrounds import BackgroundBank
from deformer_core.data.synthetic.garments import DressedBody, dress
from deformer_core.data.synthetic.poses import KINDS, PoseConfig, PoseSampler
from deformer_core.data.synthetic.renderer import Figure, Layers, Renderer
from deformer_core.data.synthetic.scene import Scene, SceneConfig, rotation, sample_scene
from deformer_core.data.synthetic.wardrobe import Wardrobe, Worn
from deformer_core.geometry.camera import camera_from_translation, crop_rotation, project_crop

FloatArray = NDArray[np.float32]
Record = dict[str, NDArray[Any]]

MIN_VISIBLE = 6
"""Joints that occluders must leave to be seen."""


@dataclass(frozen=True)
class SyntheticConfig:
    """What is rendered. Paths are the user's; without them poses and backgrounds are drawn."""

    body: str = "anny"
    image_size: int = 256
    split: str = "train"
    """"train" or "held_out": of the recorded clips and of the backgrounds."""
    motion_capture: Path | None = None
    """Folder for `load_pose_bank`."""
    clothes: Path | None = None
    """Folder or tar archive for `load_garments`; without it clothes are painted."""
    backgrounds: Path | None = None
    """Folder of photos."""
    background_people: Path | None = None
    """COCO-people json, in place of a folder: its photos, around the people."""
    background_count: int = 1500
    companions: float = 0.22
    """Share of images with more people than the subject."""
    pose: PoseConfig = field(default_factory=PoseConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    post: post.PostConfig = field(default_factory=post.PostConfig)


@dataclass(frozen=True)
class Posed:
    """A body as sampled, in the world's axes, pelvis at the origin. One sample, no batch axis."""

    rotations: FloatArray
    shape: FloatArray
    kind: str
    coarse: FloatArray
    dressed: FloatArray
    joints: FloatArray


class Studio:
    """What rendering needs and is slow to make: body, poses, backgrounds. Made once, then only read."""

    def __init__(self, config: SyntheticConfig) -> None:
        self.body: DressedBody = dress(load_body(config.body))
        self.wardrobe = None if config.clothes is None else Wardrobe(config.clothes, self.body)
        self.parametric = ParametricBody(self.body.topology, ("coarse", "dressed"))
        self.backgrounds = BackgroundBank(
            config.backgrounds, config.background_people, config.split, config.background_count, config.image_size
        )
        bank = None
        if config.motion_capture is not None:
            bank = load_pose_bank(config.motion_capture, self.body.topology).split(config.split == "held_out")
        self.sampler = PoseSampler(self.body.topology, bank, config.pose)

    @torch.no_grad()
    def pose(self, rng: np.random.Generator) -> Posed:
        rotations, shape, kinds = self.sampler.sample(rng, 1)
        # One at a time: a batched product may round differently, and a sample must not depend on its neighbours.
        posed = self.parametric(torch.from_numpy(rotations), torch.from_numpy(shape))
        coarse, dressed, joints = (posed[name][0].numpy() for name in ("coarse", "dressed", "joints"))
        return Posed(rotations[0], shape[0], kinds[0], coarse, dressed, joints)


class SyntheticDataset:
    """Endless rendered people by index. Safe to fork and to pickle: each process makes its own OpenGL context.

    (As with all of torch, a forked process must stay with one thread; `DataLoader`'s workers do.)
    """

    def __init__(self, config: SyntheticConfig | None = None, seed: int = 0) -> None:
        self.config = config or SyntheticConfig()
        self.seed = seed
        self.studio = Studio(self.config)
        self._renderer: tuple[int, Renderer] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderer": None}

    @property
    def renderer(self) -> Renderer:
        if self._renderer is None or self._renderer[0] != os.getpid():
            self._renderer = (os.getpid(), Renderer(self.studio.body, self.config.image_size))
        return self._renderer[1]

    def iterate(self, start: int, stop: int) -> Iterator[Record]:
        for index in range(start, stop):
            yield self[index]

    def __getitem__(self, index: int) -> Record:
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        subject = self.studio.pose(rng)
        scene = sample_scene(rng, self.config.scene, subject.coarse)
        record = make_labels(subject, scene)
        companions, hidden = self._companions(rng, scene)
        figures = [self._figure(rng, subject, scene.view, scene.translation, True), *companions]
        layers = self.renderer.draw(figures, record["box"], sample_light(rng))
        record |= self._photograph(rng, layers, scene, record, hidden)
        record["companions"] = np.array(len(companions))
        record["kind"] = np.array(KINDS.index(subject.kind))
        record["index"] = np.array(index)
        return record

    def _figure(
        self, rng: np.random.Generator, posed: Posed, view: NDArray, translation: NDArray, is_subject: bool
    ) -> Figure:
        turn, shift = view.T.astype(np.float32), translation.astype(np.float32)
        look = sample_appearance(rng, self.studio.body)
        worn = self._dress(rng, posed, look)
        worn = [replace(one, vertices=one.vertices @ turn + shift) for one in worn]
        return Figure(posed.dressed @ turn + shift, look, is_subject, worn)

    def _dress(self, rng: np.random.Generator, posed: Posed, look: Appearance) -> list[Worn]:
        """Put garments on a body, the look made to suit them."""
        wardrobe = self.studio.wardrobe
        if wardrobe is None:
            return []
        # A generator of their own: with clothes or without, all else in the picture is the same.
        own = rng.spawn(1)[0]
        worn = wardrobe.pose(wardrobe.choose(own), posed.rotations, posed.shape)
        wardrobe.undress(own, look, worn)
        return worn

    def _companions(self, rng: np.random.Generator, scene: Scene) -> tuple[list[Figure], bool]:
        """Other people in the picture, mostly behind; and whether one may hide a part of the subject."""
        figures: list[Figure] = []
        in_front = False
        if rng.random() >= self.config.companions:
            return figures, in_front
        x, y, half = (float(value) for value in scene.box())
        for _ in range(int(rng.choice([1, 2], p=[0.7, 0.3]))):
            posed = self.studio.pose(rng)
            behind = rng.random() < 0.8
            depth = scene.translation[2] * (rng.uniform(1.1, 3) if behind else rng.uniform(0.65, 0.95))
            aside = rng.choice([-1, 1]) * (rng.uniform(0.1, 1.2) if behind else rng.uniform(0.5, 1.1))
            place = np.array([x + aside * half, y + rng.normal(0.1, 0.25) * half, 1.0]) * depth
            view = scene.view @ rotation("y", rng.uniform(-np.pi, np.pi))
            figure = self._figure(rng, posed, view, place, False)
            if figure.vertices[:, 2].min() > 0.3:
                figures.append(figure)
                in_front |= not behind
        return figures, in_front

    def _photograph(
        self, rng: np.random.Generator, layers: Layers, scene: Scene, labels: Record, hidden: bool
    ) -> Record:
        """Layers to a picture, and what of the labels can be seen in it."""
        config, size = self.config.post, self.config.image_size
        background, number = self.studio.backgrounds.sample(rng)
        image = post.compose(layers.color, layers.alpha, post.defocus(rng, background))
        borders = image_borders(scene, size)
        joints_2d = labels["joints_2d"]
        inside = joints_inside(joints_2d, borders, size)
        seen = layers.subject.astype(np.float32) * np.float32(1 / 255)
        visible = inside & near_mask(joints_2d, seen)
        if rng.random() < config.occluded:
            mask = post.sample_occluders(rng, size, layers.subject)
            texture = post.sample_texture(rng, self.studio.backgrounds.sample(rng)[0])
            still_visible = inside & near_mask(joints_2d, seen * (1 - mask))
            if still_visible.sum() >= min(MIN_VISIBLE, visible.sum()):
                hidden, visible = True, still_visible
                image = image + mask[..., None] * (texture - image)
        image = post.photograph(rng, image, config)
        post.fill_border(rng, image, borders)
        truncated = scene.cut != "none" or not inside.all()
        return {
            "image": post.encode(rng, image, config),
            "joints_inside": inside,
            "joints_visible": visible,
            "truncated": np.array(truncated),
            "occluded": np.array(hidden),
            "clean": np.array(not truncated and not hidden),
            "background": np.array(number),
        }


def make_labels(posed: Posed, scene: Scene) -> Record:
    """The exact geometry of a sample, see the module's docstring."""
    box = torch.from_numpy(scene.box())[None]
    turn = crop_rotation(box)[0].numpy().T.astype(np.float64)
    to_model = (turn @ scene.view).T.astype(np.float32)
    rotations = posed.rotations.copy()
    rotations[0] = scene.view @ posed.rotations[0]
    camera = camera_from_translation(torch.from_numpy((turn @ scene.translation)[None]).float(), box)
    joints, vertices = posed.joints @ to_model, posed.coarse @ to_model
    at = scene.intrinsics
    return {
        "box": box[0].numpy(),
        "camera": camera[0].numpy(),
        "vertices_coarse": vertices,
        "joints": joints,
        "joints_2d": project_crop(torch.from_numpy(joints)[None], camera, box)[0].numpy(),
        "rotations": rotations,
        "shape": posed.shape,
        "translation": scene.translation.astype(np.float32),
        "intrinsics": np.array([at.fx, at.fy, at.cx, at.cy], np.float32),
        "image_size": np.array([at.width, at.height], np.int32),
        "window": np.array([scene.window.center_x, scene.window.center_y, scene.window.side], np.float32),
    }


def image_borders(scene: Scene, size: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the full image in pixels of the crop."""
    window, scale = scene.window, size / scene.window.side
    left, top = window.center_x - window.side / 2, window.center_y - window.side / 2
    right, bottom = scene.intrinsics.width - left, scene.intrinsics.height - top
    return round(-left * scale), round(-top * scale), round(right * scale), round(bottom * scale)


def joints_inside(joints_2d: FloatArray, borders: tuple[int, int, int, int], size: int) -> NDArray[np.bool_]:
    pixels = (joints_2d + 1) / 2 * size
    low = np.maximum(borders[:2], 0)
    high = np.minimum(borders[2:], size)
    return np.all((pixels >= low) & (pixels <= high), axis=1)


def near_mask(joints_2d: FloatArray, mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the mask is more than half full at the pixel of a joint or one beside it."""
    size = len(mask)
    pixels = np.floor((joints_2d + 1) / 2 * size).astype(int)
    steps = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])
    x, y = np.clip(pixels[:, None] + steps, 0, size - 1).transpose(2, 0, 1)
    return np.any(mask[y, x] > 0.5, axis=1)
