"""The filter against its equations: off, at rest, in motion, at any frame rate, in any axes."""

import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.runtime.person import Person
from deformer_core.runtime.placement import project
from deformer_core.runtime.smoothing import LONGEST_GAP, Smoother
from deformer_core.runtime.tracker import Track, TrackState

CAMERA = np.array([[1000, 0, 640], [0, 1000, 360], [0, 0, 1]], np.float32)
PLACE = np.array([0.3, 0.1, 4.0])


def make_track(
    body: BodyTopology,
    place: np.ndarray = PLACE,
    rng: np.random.Generator | None = None,
    id: int = 1,
    state: TrackState = TrackState.TRACKED,
    level: str = "coarse",
) -> Track:
    """rng: for noise of 2 cm."""
    mesh = body.levels[level]
    joints = mesh.joint_regressor.apply(mesh.vertices)
    parts = [place, joints, mesh.vertices]
    if rng is not None:
        parts = [part + rng.normal(0, 0.02, part.shape) for part in parts]
    place, joints, vertices = (np.float32(part) for part in parts)
    pixels = np.float32(project(joints + place, CAMERA))
    person = Person(
        id, np.zeros(4, np.float32), 1.0, joints, vertices, place, np.ones(3, np.float32), pixels, level, CAMERA
    )
    return Track(id, state, person)


def run(strength: float, tracks: list[Track], fps: float) -> list[Person]:
    smoother = Smoother(strength)
    return [smoother([track], index / fps)[0].person for index, track in enumerate(tracks)]


def test_off_changes_nothing(body: BodyTopology, rng: np.random.Generator) -> None:
    smoother = Smoother(0.0)
    for index in range(3):
        track = make_track(body, rng=rng)
        assert smoother([track], index / 30) == [track]


def test_stronger_is_calmer(body: BodyTopology, rng: np.random.Generator) -> None:
    tracks = [make_track(body, rng=rng) for _ in range(60)]
    jitter = []
    for strength in (0.0, 0.1, 0.3, 0.6, 1.0):
        people = run(strength, tracks, 30)[20:]
        points = np.stack([np.concatenate([p.translation[None], p.joints, p.vertices]) for p in people])
        jitter.append(np.diff(points, axis=0).std())
    print("frame to frame, mm:", [f"{1e3 * value:.1f}" for value in jitter])
    assert (np.diff(jitter) < 0).all() and jitter[-1] < 0.25 * jitter[0]


@pytest.mark.parametrize(("strength", "limit"), [(0.1, 0.01), (0.3, 0.02), (1.0, 0.1)])
def test_walking_people_are_not_left_behind(strength: float, limit: float, body: BodyTopology) -> None:
    """Metres behind at 1.2 m/s, with a constant lag: the speed opens the filter."""
    places = [PLACE + [1.2 * index / 30, 0, 0] for index in range(120)]
    people = run(strength, [make_track(body, place) for place in places], 30)
    behind = [place[0] - person.translation[0] for place, person in zip(places, people)]
    assert 0 < behind[-1] < limit and abs(behind[-1] - behind[-10]) < 0.1 * limit


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_frame_rate_does_not_matter(strength: float, body: BodyTopology) -> None:
    """One second of a smooth movement, then of rest, seen at three rates: the same paths."""
    paths = []
    for fps in (15, 30, 60):
        times = np.arange(2 * fps + 1) / fps
        places = [PLACE + [0.4 * (1 - np.cos(np.pi * min(time, 1.0))), 0, 0] for time in times]
        people = run(strength, [make_track(body, place) for place in places], fps)
        paths.append(np.array([person.translation[0] for person in people])[:: fps // 15])
    apart = [np.abs(path - paths[0]).max() for path in paths[1:]]
    print(f"30 and 60 Hz differ from 15 Hz by {1e3 * apart[0]:.1f} and {1e3 * apart[1]:.1f} mm, on a way of 800")
    assert max(apart) < 0.04


def test_steps_decay_alike_at_any_rate(body: BodyTopology) -> None:
    """A low pass of a constant cutoff follows a small step by 1 - exp(-2 pi f t) exactly."""
    tiny = 1e-4  # metres: too slow for the speed to matter
    left = []
    for fps in (15, 60):
        tracks = [make_track(body)] + [make_track(body, PLACE + [tiny, 0, 0]) for _ in range(fps // 5)]
        left.append((PLACE[0] + tiny - run(1.0, tracks, fps)[-1].translation[0]) / tiny)
    np.testing.assert_allclose(left, np.exp(-2 * np.pi * 0.7 / 5), atol=0.02)


def test_the_axes_do_not_matter(body: BodyTopology, rng: np.random.Generator) -> None:
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    tracks = [make_track(body, PLACE + [0.05 * index, 0, 0], rng) for index in range(10)]
    turned = []
    for track in tracks:
        p = track.person
        new = Person(**vars(p) | {name: getattr(p, name) @ turn.T for name in ("translation", "joints", "vertices")})
        turned.append(Track(track.id, track.state, new))
    plain, other = run(0.5, tracks, 30)[-1], run(0.5, turned, 30)[-1]
    for name in ("translation", "joints", "vertices"):
        np.testing.assert_allclose(getattr(other, name), getattr(plain, name) @ turn.T, atol=1e-5)


def test_joints_in_the_image_follow(body: BodyTopology, rng: np.random.Generator) -> None:
    person = run(0.8, [make_track(body, rng=rng) for _ in range(5)], 30)[-1]
    np.testing.assert_allclose(person.keypoints_2d, project(person.joints + person.translation, CAMERA), atol=1e-2)
    assert person.vertices.dtype == person.joints.dtype == person.keypoints_2d.dtype == np.float32


def test_people_are_smoothed_one_by_one(body: BodyTopology, rng: np.random.Generator) -> None:
    alone, together = Smoother(0.5), Smoother(0.5)
    for index in range(5):
        first, second = make_track(body, rng=rng), make_track(body, PLACE + 1, rng, id=2)
        (one,), (same, _) = alone([first], index / 30), together([first, second], index / 30)
        np.testing.assert_array_equal(one.person.vertices, same.person.vertices)


def test_new_beginnings(body: BodyTopology) -> None:
    """After a gap, with another mesh, or for another person under an id given up, nothing is dragged along."""
    far = PLACE + [1, 0, 0]
    for stamp, level in ((LONGEST_GAP + 0.1, "coarse"), (0.03, "middle")):
        smoother = Smoother(1.0)
        smoother([make_track(body)], 0.0)
        track = make_track(body, far, level=level)
        assert smoother([track], stamp)[0].person is track.person
    smoother = Smoother(1.0)
    smoother([make_track(body)], 0.0)
    (lost,) = smoother([make_track(body, far, state=TrackState.LOST)], 0.1)
    assert lost.person.translation[0] == np.float32(PLACE[0])  # as it was seen last
    track = make_track(body, far)
    assert smoother([track], 0.2)[0].person is track.person


@pytest.mark.parametrize("stamps", [[0.0] * 4, [1.0, 0.9, 0.8, 0.7]])
def test_stamps_that_stand_still_or_go_back(stamps: list[float], body: BodyTopology) -> None:
    smoother, seen = Smoother(0.5), []
    for index, stamp in enumerate(stamps):
        (track,) = smoother([make_track(body, PLACE + [0.1 * bool(index), 0, 0])], stamp)
        seen.append(track.person.translation[0])
    assert np.isfinite(seen).all() and (np.diff(seen) > 0).all()
