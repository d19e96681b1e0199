"""From image messages to tracked people: the same for the live node and for bags. Needs no ROS.

Messages are read by their fields, so those of rclpy and of rosbags both do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import read_checkpoint_info
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics
from deformer_core.runtime.batch import BatchEstimator, View, split_levels
from deformer_core.runtime.detector import Detector, PersonDetector
from deformer_core.runtime.engines import make_engine
from deformer_core.runtime.person import Person
from deformer_core.runtime.smoothing import Smoother
from deformer_core.runtime.tracker import Track, Tracker, TrackerConfig, TrackState
from deformer_ros.camera_info import CameraModel, Rectifier, effective_intrinsics
from deformer_ros.images import image_to_rgb
from deformer_ros.parameters import Settings

FAINT = 0.15
"""Score down to which the detector is asked, to be able to say how near it was to finding somebody."""
HOLD = 0.75
"""Of the threshold: known people are followed down to so much less, so that ids do not flicker."""
DARK = 12
"""Mean brightness, of 255, below which an image is called black."""
FRAMES_LEVEL = "middle"
"""The mesh level that bone rotations are measured on, where the model has it."""

Picture = NDArray[np.uint8]


class Model(NamedTuple):
    """What reconstructs and what detects. levels: the mesh levels that the model makes."""

    estimator: BatchEstimator
    detector: Detector
    levels: tuple[str, ...]

    @property
    def topology(self) -> BodyTopology:
        return self.estimator.topology

    @property
    def frames_level(self) -> str:
        """The level that bone rotations are measured on."""
        return FRAMES_LEVEL if FRAMES_LEVEL in self.levels else self.levels[-1]


def make_model(estimator: BatchEstimator, detector: Detector) -> Model:
    """Warm the engine up, and see which levels it makes."""
    size = estimator.engine.image_size
    outputs = estimator.engine(np.zeros((1, size, size, 3), np.uint8), np.array([[0, 0, 0.3]], np.float32))
    levels = tuple(level for level in estimator.topology.levels if f"vertices_{level}" in outputs)
    return Model(estimator, detector, levels)


def load_model(settings: Settings) -> Model:
    """Load and warm up what the settings ask for.

    Raises:
        InputError: the checkpoint, engine or device cannot be had, or the GPU has no memory for the model.
    """
    topology = read_checkpoint_info(settings.checkpoint).body()
    threads = settings.threads or None
    try:
        engine = make_engine(settings.checkpoint, settings.engine, settings.device, threads, settings.mirrored)
        return make_model(BatchEstimator(engine, topology), PersonDetector(threads=threads))
    except torch.OutOfMemoryError as error:
        raise InputError("the GPU has no memory for the model: free some, or set device to cpu") from error


@dataclass
class Arrival:
    """An image message of a camera, its latest CameraInfo if there is one, and when it came (monotonic seconds)."""

    camera: str
    image: Any
    info: Any | None
    received: float


@dataclass
class Outcome:
    """What became of one image."""

    camera: str
    header: Any
    """Of the image message."""
    received: float
    problem: str = ""
    """Why the image could not be used; nothing of the following is set then."""
    picture: Picture | None = None
    """(H, W, 3) RGB, undistorted."""
    tracks: dict[str, list[Track]] = field(default_factory=dict)
    """By mesh level: the people in this image, then those just given up (LOST)."""
    calibration: str = ""
    """The camera's state in words; `is_calibrated` whether it is a good one."""
    is_calibrated: bool = False
    best_score: float = 0.0
    """Of the detector in this image."""
    reason: str = ""
    """Why nobody was found, if so."""
    notes: dict[str, str] = field(default_factory=dict)
    """Oddities worth a line in the log, by kind, such as a stamp that jumps back."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage; stages that several images share count in full for each."""


class Pipeline:
    """Works through image messages of any number of cameras, in one batch per call.

    rectified: by camera, whether its images are already undistorted. `settings` may be replaced between calls; other
    mesh levels start the ids anew.
    """

    def __init__(self, model: Model, settings: Settings, rectified: Mapping[str, bool]):
        check_levels(model, settings)
        self.model, self.settings = model, settings
        self._cameras = {name: _Camera(is_rectified) for name, is_rectified in rectified.items()}

    @property
    def levels(self) -> tuple[str, ...]:
        """The mesh levels of all outcomes."""
        wanted = (self.settings.mesh_level, self.settings.marker_level, self.model.frames_level)
        return tuple(dict.fromkeys(wanted))

    def __call__(self, arrivals: Sequence[Arrival]) -> list[Outcome]:
        """The outcomes, in the order of the arrivals; those of one camera must be in the order of time."""
        outcomes = [Outcome(arrival.camera, arrival.image.header, arrival.received) for arrival in arrivals]
        views: list[View] = []
        usable: list[Outcome] = []
        for arrival, outcome in zip(arrivals, outcomes):
            try:
                views.append(self._look(arrival, outcome))
                usable.append(outcome)
            except InputError as error:
                outcome.problem = str(error)
        start = time.monotonic()
        levels = self.levels
        try:
            people = self.model.estimator(views, levels)
        except InputError as error:
            for outcome in usable:
                outcome.problem = str(error)
            return outcomes
        seconds = time.monotonic() - start
        for outcome, found in zip(usable, people):
            outcome.stages["reconstruct"] = seconds
            self._follow(found, outcome, levels)
        return outcomes

    def _look(self, arrival: Arrival, outcome: Outcome) -> View:
        """Decode, undistort and detect."""
        start = time.monotonic()
        camera = self._cameras[arrival.camera]
        outcome.notes = camera.check_header(arrival.image.header)
        image, intrinsics = camera.read(arrival, outcome, self.settings)
        outcome.picture = image
        decoded = time.monotonic()
        threshold = self.settings.detection_threshold
        boxes, scores = self.model.detector(image, min(FAINT, threshold), self.settings.max_people)
        outcome.best_score = float(scores[0]) if len(scores) else 0.0
        kept = scores >= HOLD * threshold
        outcome.stages |= {"decode": decoded - start, "detect": time.monotonic() - decoded}
        return View(image, intrinsics, boxes[kept], scores[kept], detected=True)

    def _follow(self, people: list[Person], outcome: Outcome, levels: tuple[str, ...]) -> None:
        """Name, smooth and sort by level; say why if nobody is there."""
        start = time.monotonic()
        tracks = self._cameras[outcome.camera].follow(people, outcome, self.settings, levels)
        split = [split_levels(track.person, levels, self.model.topology) for track in tracks]
        outcome.tracks = {
            level: [replace(track, person=parts[level]) for track, parts in zip(tracks, split)] for level in levels
        }
        if not any(track.state != TrackState.LOST for track in tracks):
            outcome.reason = _why_nobody(outcome, self.settings.detection_threshold)
        outcome.stages["track"] = time.monotonic() - start


class _Camera:
    """What one camera's images have in common."""

    _model: CameraModel

    def __init__(self, is_rectified: bool):
        self._is_rectified = is_rectified
        self._key: tuple = ()
        self._rectifier: Rectifier | None = None
        self._tracker, self._smoother = Tracker(TrackerConfig()), Smoother(0.0)
        self._levels: tuple[str, ...] = ()
        self._frame_id: str | None = None
        self._stamp = -np.inf
        self._gone: list[Track] = []

    def check_header(self, header: Any) -> dict[str, str]:
        """Compare with the last header. Returns what is odd, by kind."""
        notes = {}
        stamp = seconds(header.stamp)
        if header.frame_id != self._frame_id:
            if self._frame_id is not None:
                notes["frame"] = f"the frame id changed from '{self._frame_id}' to '{header.frame_id}': ids start anew"
                self._gone = self._tracker.reset()
            self._frame_id = header.frame_id
        if not header.frame_id:
            notes["no frame"] = "the images have no frame id: what is published cannot be placed on the robot"
        if stamp < self._stamp:
            notes["stamp"] = f"the stamp jumped back by {self._stamp - stamp:.3f} s: is a bag played again?"
        if stamp == 0:
            notes["no stamp"] = "the images have no stamp: people are followed as if no time passed"
        self._stamp = stamp
        return notes

    def read(self, arrival: Arrival, outcome: Outcome, settings: Settings) -> tuple[Picture, Intrinsics]:
        """The image in RGB without distortion, and its intrinsics. Errors: `InputError` for an unusable message."""
        image = image_to_rgb(arrival.image)
        key = (image.shape, settings.default_fov_deg, _content(arrival.info))
        if key != self._key:
            height, width = image.shape[:2]
            self._model = effective_intrinsics(
                arrival.info, width, height, self._is_rectified, settings.default_fov_deg
            )
            lens = self._model.distortion
            self._rectifier = Rectifier(self._model.intrinsics, lens) if lens else None
            self._key = key
        outcome.is_calibrated = self._model.is_calibrated
        outcome.calibration = self._model.note or "calibrated"
        if self._rectifier is None:
            return image, self._model.intrinsics
        return self._rectifier(image), self._rectifier.intrinsics

    def follow(
        self, people: list[Person], outcome: Outcome, settings: Settings, levels: tuple[str, ...]
    ) -> list[Track]:
        """The people with ids, smoothed, then those given up."""
        self._tracker.config = TrackerConfig(settings.track_timeout_s, settings.detection_threshold)
        self._smoother.strength = settings.smoothing
        if levels != self._levels:
            self._tracker.reset()
            self._levels = levels
        stamp = seconds(outcome.header.stamp)
        tracks = self._smoother(self._tracker(people, stamp), stamp)
        gone, self._gone = self._gone, []
        return [*tracks, *gone]


def check_levels(model: Model, settings: Settings) -> None:
    """Errors: `InputError` if the model does not make the levels that the settings ask for."""
    for name in ("mesh_level", "marker_level"):
        level = getattr(settings, name)
        if level not in model.levels:
            raise InputError(f"the model makes no {name} '{level}': use one of {', '.join(model.levels)}")


def looks_rectified(topic: str) -> bool:
    """Whether an image topic is one of undistorted images, as image_proc names them."""
    return "rect" in topic.rsplit("image", 1)[-1]


def seconds(stamp: Any) -> float:
    """A builtin_interfaces/Time in seconds."""
    return stamp.sec + stamp.nanosec * 1e-9


def _content(info: Any | None) -> tuple:
    """All of a CameraInfo that matters, to see whether a new one says something new."""
    if info is None:
        return ()
    roi = (info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height)
    size = (info.width, info.height, info.binning_x, info.binning_y, *roi)
    return (*size, info.distortion_model, tuple(info.d), tuple(info.k), tuple(info.p))


def _why_nobody(outcome: Outcome, threshold: float) -> str:
    assert outcome.picture is not None
    if outcome.picture[::16, ::16].mean() < DARK:
        return "nobody: the image is almost black"
    if outcome.best_score:
        return f"nobody: the best candidate scores {outcome.best_score:.2f}, detection_threshold is {threshold:.2f}"
    return "nobody in the image"
