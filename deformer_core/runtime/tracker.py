"""Who is who from image to image: stable ids from an assignment over boxes and joints.

Everybody seen is predicted to have moved on at constant velocity (pelvis, joints in the image, box); predictions and
the people of the next image are matched by the Hungarian method. No randomness: the same people and stamps give the
same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from deformer_core.runtime.person import Person

FloatArray = NDArray[np.float64]

JUMP_BACK = 1.0
"""Seconds. A stamp this much before the last one starts a new sequence; less is taken for disorder on the way."""
BRIDGED = 5.0
"""Seconds between two consecutive images over which ids are kept whatever the timeout, for slow cameras."""
LONGEST_PREDICTION = 0.5
"""Seconds over which a velocity is believed."""
MAX_MISSED = 300
"""Images after which an unseen person is given up even if the stamps stand still."""


class TrackState(IntEnum):
    """NEW: seen for the first time. TRACKED: seen before. LOST: given up, told once."""

    NEW = 0
    TRACKED = 1
    LOST = 2


@dataclass(frozen=True)
class Track:
    """A person with a name. `person.id` is `id`; of a LOST one, the person is the last that was seen."""

    id: int
    state: TrackState
    person: Person


@dataclass(frozen=True)
class TrackerConfig:
    """What counts as the same person. Costs are 0 for a perfect match and 1 for a hopeless one."""

    timeout: float = 1.0
    """Seconds that an id outlives its person's last detection."""
    new_score: float = 0.0
    """Score from which an unknown person gets an id; known ones are followed at any score that the detector reports,
    so a value above the detector's threshold keeps flickering detections out without losing anybody."""
    max_cost: float = 0.7
    """Costlier pairs are different people."""
    box_weight: float = 0.35
    """Of 1 - IoU of the boxes."""
    image_weight: float = 0.4
    """Of the joints' mean distance in the image, in halves of the body's size there."""
    space_weight: float = 0.25
    """Of the pelvis' distance over `space_reach`: depth from one camera is uncertain."""
    space_reach: float = 1.5
    """Metres."""
    missed_cost: float = 0.15
    """More for whoever the last image did not show: where one hides another, it is the nearer one that is seen on."""
    memory: float = 0.25
    """Seconds over which positions and velocities are averaged."""


class Tracker:
    """Ids count up from 1 and are never used again. `config` may be replaced between two calls."""

    def __init__(self, config: TrackerConfig | None = None):
        # Here and not in the first call: it takes a third of a second, and single photos need no tracker.
        from scipy.optimize import linear_sum_assignment

        self.config = config or TrackerConfig()
        self._assign = linear_sum_assignment
        self._memories: list[_Memory] = []
        self._next_id = 1
        self._stamp = -np.inf

    def __call__(self, people: Sequence[Person], stamp: float) -> list[Track]:
        """Name the people of one image.

        stamp: seconds. Returns the people of this image by rising id (some of unknown faint ones left out), then those
        whose ids are given up now, as LOST. Whoever is out of sight but within the timeout is not in the list.
        """
        lost = self.reset() if stamp < self._stamp - JUMP_BACK else []
        self._stamp = max(stamp, self._stamp)
        lost += self._give_up()
        pairs = self._match(people)
        seen = [self._memories[row].see(people[column], self._stamp, self.config.memory) for row, column in pairs]
        known = {column for _, column in pairs}
        for column, person in enumerate(people):
            if column not in known and person.score >= self.config.new_score:
                self._memories.append(_Memory(self._next_id, person, self._stamp))
                seen.append(Track(self._next_id, TrackState.NEW, self._memories[-1].person))
                self._next_id += 1
        names = {track.id for track in seen}
        for memory in self._memories:
            memory.missed = 0 if memory.person.id in names else memory.missed + 1
        return sorted(seen, key=lambda track: track.id) + lost

    def reset(self) -> list[Track]:
        """Forget everybody. Returns them as LOST."""
        lost = [memory.lost() for memory in self._memories]
        self._memories, self._stamp = [], -np.inf
        return lost

    def _match(self, people: Sequence[Person]) -> list[tuple[int, int]]:
        """(memory, person) of those who are the same."""
        if not self._memories or not people:
            return []
        cost = pair_costs([memory.predict(self._stamp) for memory in self._memories], people, self.config)
        missed = np.array([memory.missed > 0 for memory in self._memories])
        cost += self.config.missed_cost * missed[:, None]
        # Hopeless pairs cost more than all others together: they never displace a good one.
        rows, columns = self._assign(np.where(cost <= self.config.max_cost, cost, 1e3))
        return [(row, column) for row, column in zip(rows, columns) if cost[row, column] <= self.config.max_cost]

    def _give_up(self) -> list[Track]:
        gone = [memory for memory in self._memories if self._is_over(memory)]
        self._memories = [memory for memory in self._memories if memory not in gone]
        return [memory.lost() for memory in gone]

    def _is_over(self, memory: _Memory) -> bool:
        limit = self.config.timeout if memory.missed else max(self.config.timeout, BRIDGED)
        return self._stamp - memory.stamp > limit or memory.missed > MAX_MISSED


def pair_costs(predicted: Sequence[Person], people: Sequence[Person], config: TrackerConfig) -> FloatArray:
    """(N, M) cost of each pair being one person: 0 for the same place, box and pose."""
    boxes, others = _stack(predicted, "box")[:, None], _stack(people, "box")[None]
    joints, other_joints = _stack(predicted, "keypoints_2d")[:, None], _stack(people, "keypoints_2d")[None]
    sizes = np.maximum(_box_size(boxes), _box_size(others))
    in_image = np.linalg.norm(joints - other_joints, axis=-1).mean(-1) / (sizes / 2)
    places, other_places = _stack(predicted, "translation")[:, None], _stack(people, "translation")[None]
    in_space = np.linalg.norm(places - other_places, axis=-1) / config.space_reach
    return (
        config.box_weight * (1 - _overlap(boxes, others))
        + config.image_weight * np.minimum(in_image, 1)
        + config.space_weight * np.minimum(in_space, 1)
    )


class _Memory:
    """The last sight of somebody, and where a critically damped g-h filter expects them next.

    Fading-memory filter of first degree (Brookner 1998, "Tracking and Kalman Filtering Made Easy", 1.3): the weight
    of what was seen falls by e over `memory` seconds.
    """

    def __init__(self, id: int, person: Person, stamp: float):
        self.person, self.stamp, self.missed = replace(person, id=id), stamp, 0
        self._position = _motion(person)
        self._velocity = np.zeros_like(self._position)

    def see(self, person: Person, stamp: float, memory: float) -> Track:
        elapsed = stamp - self.stamp
        fading = float(np.exp(-elapsed / memory))
        expected = self._expect(stamp)
        error = _motion(person) - expected
        self._position = expected + (1 - fading**2) * error
        if elapsed > 0:
            self._velocity += (1 - fading) ** 2 / elapsed * error
        self.person, self.stamp = replace(person, id=self.person.id), stamp
        return Track(self.person.id, TrackState.TRACKED, self.person)

    def predict(self, stamp: float) -> Person:
        box, place, joints = np.split(self._expect(stamp).astype(np.float32), [4, 7])
        return replace(self.person, box=box, translation=place, keypoints_2d=joints.reshape(-1, 2))

    def lost(self) -> Track:
        return Track(self.person.id, TrackState.LOST, self.person)

    def _expect(self, stamp: float) -> FloatArray:
        return self._position + min(stamp - self.stamp, LONGEST_PREDICTION) * self._velocity


def _motion(person: Person) -> FloatArray:
    """What is followed: the box (4), the pelvis (3), the joints in the image (2 J)."""
    return np.concatenate([person.box, person.translation, person.keypoints_2d.ravel()]).astype(np.float64)


def _stack(people: Sequence[Person], name: str) -> FloatArray:
    return np.stack([np.asarray(getattr(person, name), np.float64) for person in people])


def _box_size(boxes: FloatArray) -> FloatArray:
    """Longer side, at least a pixel."""
    return np.maximum(boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]).clip(1)


def _overlap(first: FloatArray, second: FloatArray) -> FloatArray:
    """Intersection over union of boxes (..., 4)."""
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1) for boxes in (first, second)]
    return shared / (areas[0] + areas[1] - shared).clip(1e-9)
