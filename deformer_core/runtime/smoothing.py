"""Steady bodies from unsteady ones: a One-Euro filter (Casiez et al. 2012) on every point of a tracked person.

Slow movements are smoothed much, fast ones little. The speed is each point's own and filters its three coordinates
alike, so the result does not depend on the axes. Steps decay exactly exponentially, whatever the frame rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import project
from deformer_core.runtime.tracker import Track, TrackState

FloatArray = NDArray[np.float32]

CUTOFFS = (8.0, 0.7)
"""Hz at rest, from the lightest smoothing to the strongest."""
GAINS = (12.0, 2.0)
"""Hz more for every metre per second, likewise."""
SPEED_CUTOFF = 1.0
"""Hz of the filter on the speed."""
LONGEST_GAP = 0.5
"""Seconds without a person after which their filter starts anew."""
DEFAULT_STEP = 1 / 30
"""Seconds between two images whose stamps are equal or in disorder."""


class Smoother:
    """Smooths the tracks of one camera. strength: 0 (off) to 1 (strong); may be set between two calls."""

    def __init__(self, strength: float):
        self.strength = strength
        self._filters: dict[int, _Filter] = {}

    def __call__(self, tracks: Sequence[Track], stamp: float) -> list[Track]:
        """The same tracks with smoothed vertices, joints, translation and, to match, joints in the image.

        stamp: seconds. LOST tracks are returned as they were last.
        """
        if self.strength <= 0:
            self._filters.clear()
            return list(tracks)
        return [replace(track, person=self._smooth(track, stamp)) for track in tracks]

    def reset(self) -> None:
        """Forget everybody."""
        self._filters.clear()

    def _smooth(self, track: Track, stamp: float) -> Person:
        last = self._filters.get(track.id)
        if track.state == TrackState.LOST:
            self._filters.pop(track.id, None)
            return last.person if last else track.person
        if last is None or stamp - last.stamp > LONGEST_GAP or _mesh_differs(last.person, track.person):
            self._filters[track.id] = _Filter(track.person, stamp)
        else:
            last.step(track.person, stamp, self.strength)
        return self._filters[track.id].person


class _Filter:
    """The state of one person's points: (1 + J + V, 3), the pelvis in the camera, then what is relative to it."""

    def __init__(self, person: Person, stamp: float):
        self.person, self.stamp = person, stamp
        self._given = self._smoothed = _points(person)
        self._velocity = np.zeros_like(self._given)

    def step(self, person: Person, stamp: float, strength: float) -> None:
        elapsed = stamp - self.stamp if stamp > self.stamp else DEFAULT_STEP
        points = _points(person)
        self._velocity += _share(SPEED_CUTOFF, elapsed) * ((points - self._given) / elapsed - self._velocity)
        speed = np.sqrt(np.einsum("ni,ni->n", self._velocity, self._velocity))
        cutoff = _between(CUTOFFS, strength) + _between(GAINS, strength) * speed
        self._smoothed = self._smoothed + _share(cutoff, elapsed)[:, None] * (points - self._smoothed)
        self._given = points
        self.person, self.stamp = _with_points(person, self._smoothed), max(stamp, self.stamp)


def _share(cutoff: NDArray | float, elapsed: float) -> NDArray:
    """How much of a step a first-order low pass of `cutoff` Hz has followed after `elapsed` seconds."""
    return -np.expm1(-2 * np.pi * elapsed * np.asarray(cutoff, np.float32))


def _between(ends: tuple[float, float], strength: float) -> float:
    """In equal ratios from the first end at 0 to the second at 1."""
    return math.exp((1 - strength) * math.log(ends[0]) + strength * math.log(ends[1]))


def _mesh_differs(first: Person, second: Person) -> bool:
    return first.level != second.level or first.vertices.shape != second.vertices.shape


def _points(person: Person) -> FloatArray:
    return np.concatenate([person.translation[None], person.joints, person.vertices]).astype(np.float32)


def _with_points(person: Person, points: FloatArray) -> Person:
    translation, joints, vertices = np.split(points, [1, 1 + len(person.joints)])
    return replace(
        person,
        translation=translation[0],
        joints=joints,
        vertices=vertices,
        keypoints_2d=project(joints + translation, person.intrinsics).astype(np.float32),
    )
