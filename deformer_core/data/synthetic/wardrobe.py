"""Who wears which of the user's garments, and where they are on a posed body."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.parametric import ParametricBody
from deformer_core.data.synthetic.appearance import Appearance, linear, sample_cloth_color
from deformer_core.data.synthetic.clothes import Garment, load_garments
from deformer_core.data.synthetic.garments import DressedBody, in_parts

FloatArray = NDArray[np.float32]

SHARE = 0.6
"""Of people who wear any garment."""
SHARES = {"suit": 0.9, "shoes": 0.75, "hair": 0.6, "hat": 0.12}
"""Of those, who wear a garment of a kind. A hat leaves no room for hair."""
LIFT = {"suit": (0.003, 0.006), "shoes": (0.002, 0.003), "hair": (0.001, 0.004), "hat": (0.004, 0.006)}
"""Least and most metres that garments are pushed out along their normals: the skin below bends otherwise than they
do."""
NOWHERE = -9.0
"""Above every head: painted clothes that end there are not painted at all."""


@dataclass(frozen=True)
class Worn:
    """A garment on a posed body. vertices: (G, 3) metres, `lift` metres along their normals not yet added."""

    garment: Garment
    vertices: FloatArray
    lift: float


class Wardrobe:
    """The garments of a folder or archive. Only those that are worn are posed."""

    def __init__(self, path: Path, body: DressedBody) -> None:
        """Errors: `InputError` as of `load_garments`."""
        self.body = body
        self.garments = load_garments(path, body)
        self._posers = [
            ParametricBody(replace(body.topology, levels={**body.topology.levels, "worn": garment.level}), ("worn",))
            for garment in self.garments
        ]

    def choose(self, rng: np.random.Generator) -> list[tuple[int, float]]:
        """Garments to wear, at most one of a kind: the index of each and its lift, metres."""
        chosen: list[tuple[int, float]] = []
        wears = rng.random() < SHARE
        for kind in ("suit", "shoes", "hat", "hair"):
            indices = [index for index, garment in enumerate(self.garments) if garment.kind == kind]
            draws, index, lift = rng.random() < SHARES[kind], rng.random(), rng.uniform(*LIFT[kind])
            has_hat = any(self.garments[other].kind == "hat" for other, _ in chosen)
            if wears and draws and indices and not (kind == "hair" and has_hat):
                chosen.append((indices[int(index * len(indices))], float(lift)))
        return chosen

    @torch.no_grad()
    def pose(self, chosen: list[tuple[int, float]], rotations: FloatArray, shape: FloatArray) -> list[Worn]:
        """Garments on a body. rotations: (R, 3, 3), shape: (S,), as `ParametricBody` takes them, and in its axes."""
        arguments = torch.from_numpy(rotations)[None], torch.from_numpy(shape)[None]
        return [
            Worn(self.garments[index], self._posers[index](*arguments)["worn"][0].numpy(), lift)
            for index, lift in chosen
        ]

    def undress(self, rng: np.random.Generator, look: Appearance, worn: list[Worn]) -> None:
        """Take off what the garments replace: paint, loose pieces, and what stands off the skin below."""
        at, u = self.body.landmarks, look.uniforms
        flat: tuple[str, ...] = ()
        for one in worn:
            garment = one.garment
            if garment.covers_trunk:
                u["sleeve"] = NOWHERE
                flat += ("torso", "arm")
            if garment.covers_legs:
                u["leg_end_y"] = NOWHERE
                flat += ("hips", "leg")
                look.pieces = [piece for piece in look.pieces if piece != "skirt"]
            if garment.kind == "shoes":
                u["shoe_y"] = -NOWHERE
                flat += ("foot",)
            if garment.kind in ("hat", "hair"):
                flat += ("head",)
                look.pieces = [piece for piece in look.pieces if piece != "hair"]
                # Painted hair below hides that the mesh has gaps, and that a hat sits on nothing.
                u["hat_on"] = 0.0
                u["hair_front_y"] = float(at.eye[1] - rng.uniform(0.05, 0.065))
                u["hair_back_y"] = float(at.ear[1] + rng.uniform(0.0, 0.04))
                u["hat"] = linear(sample_cloth_color(rng))
        parts = tuple(name for name in self.body.topology.part_names if name.endswith(flat))
        look.offsets[: self.body.n_body][in_parts(self.body.topology, parts)] = 0
