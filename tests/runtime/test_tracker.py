"""People who walk, cross, hide and leave, with the noise of a detector, told apart by their true names."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import project
from deformer_core.runtime.tracker import BRIDGED, MAX_MISSED, Track, Tracker, TrackerConfig, TrackState, pair_costs

CAMERA = np.array([[1000, 0, 640], [0, 1000, 360], [0, 0, 1]], np.float32)


class Scene:
    """Makes detections of people who all have the same body: only place and movement tell them apart."""

    def __init__(self, body: BodyTopology, rng: np.random.Generator, noise: float = 1.0):
        mesh = body.levels["coarse"]
        self.joints, self.vertices = mesh.joint_regressor.apply(mesh.vertices), mesh.vertices
        self.rng, self.noise = rng, noise

    def person(self, x: float, z: float = 4.0, score: float = 0.9) -> Person:
        """At x, z metres. Noise: 2 cm of joints and sideways, 5 % of the distance, 6 pixels of the box."""
        noise, rng = self.noise, self.rng
        place = np.array([x + rng.normal(0, 0.02) * noise, 0.2, z * np.exp(rng.normal(0, 0.05) * noise)])
        joints = self.joints + rng.normal(0, 0.02 * noise, self.joints.shape)
        pixels = project(joints + place, CAMERA)
        box = np.concatenate([pixels.min(0) - 20, pixels.max(0) + 20]) + rng.normal(0, 6, 4) * noise
        single = [np.float32(value) for value in (box, joints, self.vertices, place, np.ones(3), pixels)]
        return Person(0, single[0], score, *single[1:], "coarse", CAMERA)


@pytest.fixture
def scene(body: BodyTopology, rng: np.random.Generator) -> Scene:
    return Scene(body, rng)


def crossing(scene: Scene, fps: float, speed: float, gap: float) -> list[list[tuple[str, Person]]]:
    """Two people walk past each other, `gap` metres apart in depth; the nearer one hides the other for a while."""
    frames = []
    for index in range(int(4 / speed * fps)):
        a, b = -2 + speed * index / fps, 2 - speed * index / fps
        people = [("near", scene.person(a))]
        if abs(a - b) > 0.35:
            people.append(("far", scene.person(b, 4 + gap)))
        frames.append([people[i] for i in scene.rng.permutation(len(people))])
    return frames


def names_of_ids(frames: list[list[tuple[str, Person]]], tracks: list[list[Track]]) -> set[tuple[int, str]]:
    """Every (id, true name) that occurred: as many as there are names if nobody was taken for another."""
    pairs = set()
    for people, seen in zip(frames, tracks):
        for track in seen:
            if track.state != TrackState.LOST:
                (name,) = [name for name, person in people if person.translation is track.person.translation]
                pairs.add((track.id, name))
    return pairs


def test_crossing_people_keep_their_ids(scene: Scene) -> None:
    swapped, rounds = 0, 30
    for _ in range(rounds):
        fps, speed, gap = scene.rng.choice([10, 15, 30]), scene.rng.uniform(0.6, 1.5), scene.rng.uniform(0.4, 1.5)
        frames, tracker = crossing(scene, fps, speed, gap), Tracker()
        tracks = [tracker([p for _, p in people], index / fps) for index, people in enumerate(frames)]
        swapped += len(names_of_ids(frames, tracks)) > 2
    print(f"{swapped} of {rounds} crossings changed an id")
    assert swapped <= 3


def test_the_same_people_and_stamps_give_the_same_ids(scene: Scene) -> None:
    frames = [[p for _, p in people] for people in crossing(scene, 15, 1.0, 0.8)]
    first, second = ([[t.id for t in run(f, i / 15)] for i, f in enumerate(frames)] for run in (Tracker(), Tracker()))
    assert first == second


def test_order_of_the_people_does_not_matter(scene: Scene) -> None:
    one, other = Tracker(), Tracker()
    for index in range(20):
        people = [scene.person(x + 0.02 * index, 4) for x in (-2, -1, 0, 1, 2)]
        mixed = [people[i] for i in scene.rng.permutation(5)] if index else people
        named = [
            {t.id: t.person.box.tolist() for t in run(p, index / 15)} for run, p in ((one, people), (other, mixed))
        ]
        assert named[0] == named[1]


def test_states_and_names(scene: Scene) -> None:
    tracker = Tracker(TrackerConfig(timeout=0.5))
    (first,) = tracker([scene.person(0)], 10.0)
    assert (first.id, first.state, first.person.id) == (1, TrackState.NEW, 1)
    second = tracker([scene.person(0), scene.person(2)], 10.1)
    assert [(t.id, t.state) for t in second] == [(1, TrackState.TRACKED), (2, TrackState.NEW)]
    assert tracker([scene.person(2)], 10.2)[0].id == 2  # 1 is out of sight, not given up
    assert [t.id for t in tracker([scene.person(0), scene.person(2)], 10.4)] == [1, 2]
    for step in range(5):
        assert [t.id for t in tracker([scene.person(2)], 10.5 + step / 10)] == [2]
    gone = tracker([scene.person(2)], 11.0)
    assert [(t.id, t.state) for t in gone] == [(2, TrackState.TRACKED), (1, TrackState.LOST)]
    assert tracker([scene.person(0), scene.person(2)], 11.1)[1].id == 3  # never 1 again


def test_weak_detections_continue_but_do_not_begin(scene: Scene) -> None:
    tracker = Tracker(TrackerConfig(new_score=0.5))
    assert tracker([scene.person(0, score=0.3)], 0.0) == []
    assert tracker([scene.person(0, score=0.6)], 0.1)[0].id == 1
    assert [t.id for t in tracker([scene.person(0, score=0.3), scene.person(2, score=0.3)], 0.2)] == [1]


@pytest.mark.parametrize("back", [1.5, 1e6])
def test_a_jump_back_in_time_begins_anew(back: float, scene: Scene) -> None:
    tracker = Tracker()
    tracker([scene.person(0)], 1e6 + 5.0)
    tracks = tracker([scene.person(0)], 1e6 + 5.0 - back)
    assert [(t.id, t.state) for t in tracks] == [(2, TrackState.NEW), (1, TrackState.LOST)]
    assert [t.id for t in tracker([scene.person(0)], 1e6 + 5.1 - back)] == [2]


def test_disorder_of_the_stamps_is_borne(scene: Scene) -> None:
    tracker = Tracker()
    for stamp in (5.0, 5.2, 5.1, 5.1, 5.05, 5.3):
        assert [t.id for t in tracker([scene.person(0)], stamp)] == [1]


def test_stamps_that_stand_still(scene: Scene) -> None:
    """Ids hold, and those who left are given up all the same."""
    tracker = Tracker()
    for _ in range(3):
        assert [t.id for t in tracker([scene.person(0)], 0.0)] == [1]
    states = [t.state for _ in range(MAX_MISSED + 2) for t in tracker([], 0.0)]
    assert states == [TrackState.LOST]


def test_slow_cameras_keep_ids_but_pauses_do_not(scene: Scene) -> None:
    tracker = Tracker(TrackerConfig(timeout=0.5))
    assert [t.id for i in range(4) for t in tracker([scene.person(0)], 2.0 * i)] == [1] * 4
    after = tracker([scene.person(0)], 6.0 + BRIDGED + 0.1)
    assert [(t.id, t.state) for t in after] == [(2, TrackState.NEW), (1, TrackState.LOST)]


def test_far_people_are_never_one(scene: Scene) -> None:
    tracker = Tracker()
    tracker([scene.person(-2)], 0.0)
    assert [t.id for t in tracker([scene.person(2)], 0.1)] == [2]


def test_everybody_gets_one_id(scene: Scene) -> None:
    """Crowds that come, go and overlap: no id twice in an image, none left over when all have gone."""
    tracker, lost = Tracker(TrackerConfig(timeout=0.3)), set()
    known: set[int] = set()
    for index in range(60):
        people = [scene.person(x, scene.rng.uniform(3, 6)) for x in scene.rng.uniform(-2, 2, scene.rng.integers(8))]
        tracks = tracker(people, index / 10)
        seen = [t.id for t in tracks if t.state != TrackState.LOST]
        assert len(seen) == len(set(seen)) == len(people) and not lost & set(seen)
        known |= set(seen)
        lost |= {t.id for t in tracks if t.state == TrackState.LOST}
    lost |= {t.id for t in itertools.chain(tracker([], 6.5), tracker.reset())}
    assert lost == known


def test_costs(scene: Scene) -> None:
    scene.noise = 0.0
    people = [scene.person(x, z) for x, z in ((0, 4), (0.3, 4), (0, 5.5), (3, 4))]
    cost = pair_costs(people, people, TrackerConfig())
    np.testing.assert_allclose(np.diag(cost), 0, atol=1e-6)
    np.testing.assert_allclose(cost, cost.T, atol=1e-6)
    assert (np.diff(cost[0]) > 0).all() and cost.max() <= 1 + 1e-9
    broken = replace(people[0], translation=np.full(3, np.nan, np.float32))
    tracker = Tracker()
    tracker([people[0]], 0.0)
    assert len(tracker([broken], 0.1)) == 1  # somebody else, and no error
