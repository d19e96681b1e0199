"""From a pipeline's outcomes to messages, the same on live topics and in bags."""

from __future__ import annotations

from typing import Any

import numpy as np

from deformer_core.runtime.tracker import TrackState
from deformer_ros.body_frames import BodyFrames, BonePoses
from deformer_ros.human_messages import BodyTransforms, human_mesh_array
from deformer_ros.markers import MarkerSerializer, MarkerStyle
from deformer_ros.message_types import ROS, MessageTypes
from deformer_ros.parameters import Settings, color_of
from deformer_ros.pipeline import Model, Outcome

MARKER_LIFETIME = 0.5
"""Seconds after which RViz takes away what nobody renews."""


class BodyMessages:
    """Meshes and transforms. Both need the bones' rotations, `measure`, which take time: once for both."""

    def __init__(self, model: Model, types: MessageTypes = ROS):
        self._topology, self._level, self._types = model.topology, model.frames_level, types
        self.frames = BodyFrames(model.topology, model.frames_level)
        self._transforms = BodyTransforms(self.frames, types)

    def measure(self, outcome: Outcome) -> BonePoses:
        """How the bones of everybody in an outcome lie, those just given up too."""
        shape = self._topology.levels[self._level].vertices.shape
        vertices = [track.person.vertices for track in outcome.tracks[self._level]]
        return self.frames(np.stack(vertices) if vertices else np.zeros((0, *shape), np.float32))

    def meshes(self, outcome: Outcome, poses: BonePoses, level: str) -> Any:
        """deformer_ros/HumanMeshArray. level: one of the outcome's."""
        tracks = outcome.tracks[level]
        return human_mesh_array(outcome.header, tracks, poses.quaternions(), self._topology, self._types)

    def transforms(self, outcome: Outcome, poses: BonePoses) -> list[Any]:
        """geometry_msgs/TransformStamped of all who are seen, to be serialized before the next call.

        Every camera counts its ids for itself, so its name goes before.
        """
        tracks = outcome.tracks[self._level]
        seen = [index for index, track in enumerate(tracks) if track.state != TrackState.LOST]
        if not seen:
            return []
        visible = BonePoses(poses.rotations[seen], poses.heads[seen])
        places = np.stack([tracks[index].person.translation for index in seen])
        positions, quaternions = self.frames.transforms(visible, places)
        ids = [f"{outcome.camera}_{tracks[i].id}" if outcome.camera else tracks[i].id for i in seen]
        return self._transforms(outcome.header, ids, positions, quaternions)


class MarkerMessages:
    """Markers of one camera, at the pace that the settings say."""

    def __init__(self, model: Model, settings: Settings, types: MessageTypes = ROS):
        self._model, self._types = model, types
        self._lost: list[int] = []
        self._look: tuple[str, MarkerStyle] | None = None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take new settings."""
        self._level, self._pace = settings.marker_level, Pace(settings.marker_rate)
        color = color_of(settings.marker_color)
        style = MarkerStyle(color=color, opacity=settings.marker_opacity, lifetime=MARKER_LIFETIME)
        if (settings.marker_level, style) != self._look:
            self._look = settings.marker_level, style
            self._serialize = MarkerSerializer(self._model.topology, *self._look, self._types)

    @property
    def note(self) -> str:
        """What is not as it should be, in words."""
        return self._serialize.note or ""

    def __call__(self, outcome: Outcome, now: float, is_asked_for: bool = True) -> bytes | None:
        """A serialized visualization_msgs/MarkerArray, None if none is due. now: seconds of any clock."""
        tracks = outcome.tracks[self._level]
        # Those given up between two messages are remembered: nobody would take their markers away otherwise.
        self._lost += [track.id for track in tracks if track.state == TrackState.LOST]
        if not is_asked_for or not self._pace(now):
            return None
        people = [track.person for track in tracks if track.state != TrackState.LOST]
        lost, self._lost = self._lost, []
        return self._serialize(outcome.header, people, lost)


class Pace:
    """Lets at most so many pass per second."""

    def __init__(self, rate: float):
        self._period, self._next = 1 / rate, 0.0

    def __call__(self, now: float) -> bool:
        if now < self._next:
            return False
        # In steps from the last due time, so that 15 of 30 frames pass and not 10.
        self._next = (self._next if now < self._next + self._period else now) + self._period
        return True
