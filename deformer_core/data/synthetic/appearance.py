"""Who is wearing what under which light: everything about a person that is not its pose, drawn from a generator.

Colours and cuts are uniforms of the fragment shader, which works in template coordinates (see `shaders`);
loose cloth and hair volume are offsets of the vertices along their normals. The labels stay the body's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.data.synthetic.garments import DressedBody

FloatArray = NDArray[np.float32]
Color = tuple[float, float, float]

# sRGB, from very light to very dark.
_SKINS = np.array(
    [[0.95, 0.82, 0.74], [0.91, 0.74, 0.63], [0.84, 0.65, 0.52], [0.72, 0.52, 0.40], [0.58, 0.40, 0.29],
     [0.44, 0.29, 0.21], [0.31, 0.20, 0.15]]
)  # fmt: skip
_HAIRS = np.array(
    [[0.05, 0.04, 0.04], [0.14, 0.09, 0.06], [0.27, 0.17, 0.10], [0.45, 0.30, 0.17], [0.72, 0.57, 0.36],
     [0.45, 0.18, 0.08], [0.62, 0.62, 0.62], [0.85, 0.84, 0.82]]
)  # fmt: skip

PATTERNS = ("plain", "stripes", "checks", "blotches", "panel")


@dataclass
class Appearance:
    """Uniforms of the shader by name, what is drawn, and how far cloth stands off the skin."""

    uniforms: dict[str, Any] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=lambda: ["body"])
    offsets: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    """(V,) metres along the normal."""


def linear(srgb: NDArray[np.float64]) -> Color:
    """sRGB to the linear colours that lights are added in (a plain power law)."""
    r, g, b = np.clip(srgb, 0, 1) ** 2.2
    return float(r), float(g), float(b)


def sample_cloth_color(rng: np.random.Generator) -> NDArray[np.float64]:
    """Much of what people wear is black, white, grey, navy or denim; the rest is any colour."""
    kind = rng.random()
    if kind < 0.4:
        return np.full(3, rng.choice([0.08, 0.2, 0.4, 0.7, 0.92])) * rng.uniform(0.85, 1.08, 3)
    if kind < 0.6:
        return np.array([0.16, 0.22, 0.38]) * rng.uniform(0.5, 1.9) + rng.normal(0, 0.03, 3)
    hue, saturation, value = rng.random(), rng.uniform(0.2, 0.95), rng.uniform(0.25, 0.95)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return value * (1 - saturation * (1 - wheel))


def sample_appearance(rng: np.random.Generator, body: DressedBody) -> Appearance:
    look = Appearance()
    _sample_person(rng, look)
    _sample_clothes(rng, body, look)
    _sample_head(rng, body, look)
    look.offsets = _offsets(rng, body, look)
    return look


def sample_light(rng: np.random.Generator) -> dict[str, Any]:
    """A sky and ground term and two directional lights, in the camera's axes."""
    key = rng.normal(size=3) * [1.0, 0.6, 1.0] + [0, -0.7, -0.5]
    fill = rng.normal(size=3)
    warm = rng.normal(0, 0.12)
    temperature = np.array([1 + warm, 1.0, 1 - warm])
    ambient = rng.uniform(0.22, 0.75)
    strength = rng.uniform(0.2, 1.0) * (1.2 - ambient)
    sky = ambient * temperature[::-1] * rng.uniform(0.9, 1.1, 3)
    return {
        "key_direction": tuple(key / np.linalg.norm(key)),
        "key_color": tuple(1.6 * strength * temperature),
        "fill_direction": tuple(fill / np.linalg.norm(fill)),
        "fill_color": tuple(rng.uniform(0, 0.4) * rng.uniform(0.7, 1.1, 3)),
        "sky_color": tuple(sky),
        "ground_color": tuple(sky * rng.uniform(0.3, 0.9) * rng.uniform(0.85, 1.1, 3)),
    }


def _sample_person(rng: np.random.Generator, look: Appearance) -> None:
    place = rng.beta(1.1, 1.5) * (len(_SKINS) - 1.001)
    low = int(place)
    skin = (1 - place + low) * _SKINS[low] + (place - low) * _SKINS[low + 1]
    skin = skin * rng.uniform(0.93, 1.07) * (1 + rng.normal(0, 0.02, 3))
    hair = np.clip(_HAIRS[rng.integers(len(_HAIRS))] * rng.uniform(0.7, 1.25), 0, 0.95)
    if rng.random() < 0.05:
        hair = sample_cloth_color(rng)
    look.uniforms |= {
        "skin": linear(skin),
        "lips": linear(skin * [rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.75), rng.uniform(0.55, 0.8)]),
        "hair": linear(hair),
        "brow": linear(0.6 * hair + 0.25 * skin),
        "iris": linear(np.array([[0.2, 0.12, 0.07], [0.25, 0.35, 0.5], [0.3, 0.35, 0.2]])[rng.integers(3)]),
        "skin_gloss": float(rng.uniform(0.02, 0.15)),
        "phase": float(rng.uniform(0, 100)),
    }


def _sample_cloth(rng: np.random.Generator, look: Appearance, name: str) -> None:
    first = sample_cloth_color(rng)
    second = sample_cloth_color(rng) if rng.random() < 0.6 else np.clip(first * rng.uniform(0.4, 1.6), 0, 1)
    direction = rng.normal(size=3)
    if rng.random() < 0.7:
        direction = np.eye(3)[rng.choice([0, 1])] + rng.normal(0, 0.02, 3)
    direction = direction / np.linalg.norm(direction)
    across = np.cross(direction, [0.0, 0.0, 1.0]) + [0, 0, 0.3]
    frequency = np.exp(rng.uniform(np.log(25), np.log(250)))
    look.uniforms |= {
        f"{name}.first": linear(first),
        f"{name}.second": linear(second),
        f"{name}.pattern": int(rng.choice(len(PATTERNS), p=[0.5, 0.18, 0.1, 0.12, 0.1])),
        f"{name}.along": tuple(direction * frequency),
        f"{name}.across": tuple(across * frequency),
        f"{name}.gloss": float(rng.uniform(0, 0.06) if rng.random() < 0.85 else rng.uniform(0.1, 0.4)),
        f"{name}.wrinkle": float(rng.uniform(0, 0.45)),
    }


def _sample_clothes(rng: np.random.Generator, body: DressedBody, look: Appearance) -> None:
    at = body.landmarks
    for name in ("top", "bottom"):
        _sample_cloth(rng, look, name)
    if rng.random() < 0.12:  # a suit, a tracksuit
        look.uniforms |= {
            key.replace("top.", "bottom."): value for key, value in look.uniforms.items() if key.startswith("top.")
        }
    # No top at all, straps, T-shirt, half, long sleeves; place along the arm.
    sleeve = (rng.choice([-9.0, -0.3, 0.55, 1.1, 1.95], p=[0.03, 0.12, 0.37, 0.1, 0.38])) + rng.normal(0, 0.12)
    leg = rng.choice(5, p=[0.62, 0.14, 0.1, 0.08, 0.06])
    length = at.ankle_y - at.hip_y
    leg_end = at.hip_y + length * float([0.97, 0.46, 0.33, 0.7, 0.17][leg] + rng.normal(0, 0.03))
    waist = at.hip_y - float(rng.uniform(0.05, 0.17))
    hem = waist + float(rng.uniform(-0.03, 0.03) if rng.random() < 0.35 else rng.uniform(0.08, 0.24))
    skirt = rng.random() < 0.12
    dress = skirt and rng.random() < 0.5
    if skirt:
        leg_end = at.hip_y + length * float(rng.uniform(0.3, 1.0))
        look.pieces.append("skirt")
    if dress:
        look.uniforms |= {
            key.replace("top.", "bottom."): value for key, value in look.uniforms.items() if key.startswith("top.")
        }
    barefoot = rng.random() < 0.08
    look.uniforms |= {
        "sleeve": float(np.clip(sleeve, -9, 2.0)),
        "hem_y": float(hem),
        "waist_y": float(waist),
        "leg_end_y": leg_end,
        "neckline": float(rng.uniform(0.055, 0.13)),
        "opening": float(rng.uniform(0.02, 0.25) if rng.random() < 0.15 else -1.0),
        "shoe_y": 9.0 if barefoot else at.ankle_y + float(rng.uniform(-0.03, 0.06) if rng.random() < 0.8 else -0.2),
        "sock_y": at.ankle_y - float(rng.choice([-0.05, 0.02, 0.09, 0.25])),
        "shoe": linear(sample_cloth_color(rng)),
        "sole": linear(np.full(3, rng.choice([0.1, 0.9])) * rng.uniform(0.8, 1, 3)),
        "sock": linear(np.full(3, rng.choice([0.1, 0.5, 0.92])) * rng.uniform(0.9, 1, 3)),
        "glove": float(rng.random() < 0.03),
    }


def _sample_head(rng: np.random.Generator, body: DressedBody, look: Appearance) -> None:
    at = body.landmarks
    kind = rng.random()
    bald, hat = kind < 0.08, kind > 0.86
    front = float(at.eye[1] - rng.uniform(0.045, 0.08))
    back = float(at.ear[1] + rng.uniform(0.02, 0.09))
    if hat:
        front, back = float(at.eye[1] - rng.uniform(0.03, 0.055)), float(at.ear[1] - rng.uniform(0.0, 0.03))
        look.uniforms["hat"] = linear(sample_cloth_color(rng))
    if bald:
        front = back = float(at.top_y - 1)
    if not bald and rng.random() < 0.32:
        look.pieces.append("hair")
    look.uniforms |= {
        "hair_front_y": front,
        "hair_back_y": back,
        "hat": look.uniforms.get("hat", look.uniforms["hair"]),
        "hat_on": float(hat),
        "beard": float(rng.uniform(0.3, 0.95) if rng.random() < 0.2 else 0.0),
        "hair_end_y": float(rng.uniform(at.neck[1], at.shoulder_y + 0.14)),
        "glasses": float(rng.random() < 0.12),
    }


def _offsets(rng: np.random.Generator, body: DressedBody, look: Appearance) -> FloatArray:
    """How far cloth and hair stand off: smooth in template coordinates, fading at hems."""
    rest, at, u = body.level.vertices, body.landmarks, look.uniforms
    x, y, z = rest.T
    waves = rng.normal(0, 14, (3, 3)).astype(np.float32)
    noise = 0.65 + 0.35 * np.sin(rest @ waves[0] + 2 * np.sin(rest @ waves[1]) + float(rng.uniform(0, 6)))

    def below(value: FloatArray, limit: float, width: float = 0.02) -> FloatArray:
        return np.clip((limit - value) / width, 0, 1)

    is_head = y < at.neck[1] - 0.06
    arm_or_trunk = np.where(body.arm >= 0, below(body.arm, u["sleeve"], 0.1), below(y, u["hem_y"]))
    top = np.where(is_head | (u["sleeve"] < -5), 0, arm_or_trunk)
    top = top * np.clip((np.hypot(x, z - at.neck[2]) - 0.07) / 0.04, 0, 1)
    legs = below(y, u["leg_end_y"], 0.04) * np.clip((y - u["waist_y"]) / 0.03, 0, 1)
    legs = np.where(body.arm >= 0, 0, legs)
    loose_top, loose_legs = _looseness(rng), _looseness(rng) * 0.8
    sleeves = np.where(body.arm > 0, 0.55, 1.0)
    cloth = np.maximum(top * loose_top * sleeves, legs * loose_legs)
    line = hair_line(rest, u["hair_front_y"], u["hair_back_y"], at.eye[2])
    hair = np.where(is_head, np.clip((line - y) / 0.03, 0, 1), 0) * rng.uniform(0.004, 0.03)
    shoes = np.clip((y - u["shoe_y"]) / 0.03, 0, 1) * 0.006
    offsets = (cloth * noise + hair * (0.85 + 0.15 * noise) + shoes).astype(np.float32)
    offsets[body.n_body :] = (noise[body.n_body :] - 0.65) * 0.03 + 0.4 * loose_legs
    return offsets


def _looseness(rng: np.random.Generator) -> float:
    """Metres: half of the clothes are tight or nearly so."""
    return float(rng.uniform(0.001, 0.008) if rng.random() < 0.5 else rng.uniform(0.008, 0.04))


def hair_line(rest: FloatArray, front_y: float, back_y: float, face_z: float) -> FloatArray:
    """Height of the lower edge of the hair, from the forehead to the nape. The shader has the same formula."""
    t = np.clip((rest[:, 2] - face_z - 0.045) / 0.06, 0, 1)
    return front_y + (back_y - front_y) * t * t * (3 - 2 * t)
