"""What the node publishes: per camera, and only what somebody listens to."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.lifecycle import LifecycleNode
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from visualization_msgs.msg import MarkerArray

from deformer_core.runtime.tracker import TrackState
from deformer_core.view.overlay import draw_overlay
from deformer_ros import qos
from deformer_ros.body_frames import BonePoses
from deformer_ros.human_messages import mesh_topology
from deformer_ros.markers import delete_all
from deformer_ros.msg import HumanMeshArray, MeshTopology
from deformer_ros.outcome_messages import BodyMessages, MarkerMessages, Pace
from deformer_ros.parameters import Settings
from deformer_ros.pipeline import Model, Outcome

Report = Callable[[str], None]


class Topics:
    """Makes the node's lifecycle publishers, alike: overridable QoS, mismatches in words, news of listeners.

    report: takes sentences on mismatches. changed: called when somebody starts or stops listening.
    """

    def __init__(self, node: LifecycleNode, report: Report, changed: Callable[[], None]):
        self._node, self._report, self._changed = node, report, changed
        self._made: list[LifecyclePublisher] = []

    def publisher(self, kind: type, topic: str, profile: QoSProfile) -> LifecyclePublisher:
        events = PublisherEventCallbacks(
            incompatible_qos=qos.mismatch_reporter(self._node, topic, False, self._report),
            matched=lambda _: self._changed(),
        )
        made = self._node.create_lifecycle_publisher(
            kind, topic, profile, event_callbacks=events, qos_overriding_options=qos.overriding()
        )
        self._made.append(made)
        return made

    def destroy(self) -> None:
        for publisher in self._made:
            self._node.destroy_lifecycle_publisher(publisher)
        self._made.clear()


class SharedOutputs:
    """What all cameras have in common: the topology, for late subscribers too, and the transforms."""

    def __init__(self, topics: Topics, model: Model):
        self._model = model
        self._topology = topics.publisher(MeshTopology, "~/topology", qos.latched())
        self.bodies = BodyMessages(model)
        self.tf: LifecyclePublisher | None = None
        self.note = ""
        """What is missing, in words."""
        try:
            from tf2_msgs.msg import TFMessage

            self.tf, self._tf_type = topics.publisher(TFMessage, "/tf", qos.transforms()), TFMessage
        except ImportError:
            self.note = "no transforms: tf2_msgs is not installed (apt install ros-$ROS_DISTRO-tf2-msgs)"

    def publish_topology(self, settings: Settings) -> None:
        self._topology.publish(mesh_topology(self._model.topology, settings.mesh_level))

    def wants_transforms(self, settings: Settings) -> bool:
        return self.tf is not None and settings.publish_tf and (_has_listener(self.tf) or not settings.lazy)

    def publish_transforms(self, outcome: Outcome, poses: BonePoses) -> None:
        """All people of an image in one message."""
        if self.tf is not None and (transforms := self.bodies.transforms(outcome, poses)):
            self.tf.publish(self._tf_type(transforms=transforms))


class CameraOutputs:
    """The topics of one camera, below `~/<camera>/`."""

    def __init__(self, topics: Topics, prefix: str, model: Model, shared: SharedOutputs, settings: Settings):
        self._model, self._shared = model, shared
        self._meshes = topics.publisher(HumanMeshArray, f"~/{prefix}meshes", qos.stream())
        self._markers = topics.publisher(MarkerArray, f"~/{prefix}markers", qos.stream())
        self._annotated = topics.publisher(Image, f"~/{prefix}image_annotated", qos.stream())
        self._header = Header()
        self._make_markers = MarkerMessages(model, settings)
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Take new settings; not while something is being published."""
        self._settings = settings
        self._annotated_pace = Pace(settings.annotated_rate)
        self._make_markers.apply(settings)

    @property
    def note(self) -> str:
        """What is not as it should be, in words."""
        return self._make_markers.note

    def is_wanted(self, settings: Settings) -> bool:
        """Whether anybody listens to anything that comes of this camera's images."""
        own = (self._meshes, self._markers, self._annotated)
        return not settings.lazy or any(map(_has_listener, own)) or self._shared.wants_transforms(settings)

    def publish(self, outcome: Outcome) -> None:
        """Publish what is wanted of one image."""
        settings, self._header = self._settings, outcome.header
        meshes = self._is_asked_for(self._meshes)
        transforms_wanted = self._shared.wants_transforms(settings)
        if meshes or transforms_wanted:
            poses = self._shared.bodies.measure(outcome)
            if meshes:
                self._meshes.publish(self._shared.bodies.meshes(outcome, poses, settings.mesh_level))
            if transforms_wanted:
                self._shared.publish_transforms(outcome, poses)
        if markers := self._make_markers(outcome, time.monotonic(), self._is_asked_for(self._markers)):
            self._markers.publish(markers)
        self._publish_annotated(outcome)

    def clear_markers(self) -> None:
        """Take all markers off the screens."""
        self._markers.publish(delete_all(self._header))

    def _publish_annotated(self, outcome: Outcome) -> None:
        if outcome.picture is None or not self._is_asked_for(self._annotated):
            return
        if not self._annotated_pace(time.monotonic()):
            return
        level = self._settings.marker_level
        people = [track.person for track in outcome.tracks[level] if track.state != TrackState.LOST]
        picture = draw_overlay(outcome.picture, people, self._model.topology.levels[level].faces)
        self._annotated.publish(_image_message(outcome.header, picture))

    def _is_asked_for(self, publisher: LifecyclePublisher) -> bool:
        return not self._settings.lazy or _has_listener(publisher)


def _has_listener(publisher: LifecyclePublisher) -> bool:
    return publisher.get_subscription_count() > 0


def _image_message(header: Header, picture: np.ndarray) -> Any:
    height, width = picture.shape[:2]
    message = Image(header=header, height=height, width=width, encoding="rgb8", step=width * 3)
    data = array("B")  # what the message holds; assigning anything else copies byte by byte
    data.frombytes(np.ascontiguousarray(picture).data)
    message.data = data
    return message
