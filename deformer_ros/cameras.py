"""One camera's subscriptions: images and calibrations, as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from deformer_ros import qos
from deformer_ros.diagnostics import CameraMonitor
from deformer_ros.parameters import Settings
from deformer_ros.pipeline import Arrival, looks_rectified

INFO_GRACE = 1.0
"""Seconds after the first image in which a CameraInfo may still come before the field of view is assumed."""


class Camera:
    """Subscribes to a camera while it is wanted; its callbacks only store.

    put: takes what has arrived, returns whether an older arrival had to go. report: takes a sentence for the log.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        settings: Settings,
        put: Callable[[Arrival], bool],
        report: Callable[[str, str], None],
    ):
        self._node, self.name, self._put, self._report = node, name, put, report
        self.prefix = f"{name}/" if name else ""
        self._type = CompressedImage if settings.compressed else Image
        self._topic = f"{self.prefix}image/compressed" if settings.compressed else f"{self.prefix}image"
        self.topic = node.resolve_topic_name(self._topic)
        self.monitor = CameraMonitor(f"{node.get_name()}: camera {name}".rstrip(), self.topic)
        self._subscriptions: list[Subscription] = []
        self._info: CameraInfo | None = None
        self._first: float | None = None

    def is_rectified(self, rectification: str) -> bool:
        """Whether the images are undistorted, as the parameter or else the topic's name says."""
        return rectification == "rectified" or (rectification == "auto" and looks_rectified(self.topic))

    @property
    def is_subscribed(self) -> bool:
        return bool(self._subscriptions)

    def publisher_count(self) -> int:
        return self._node.count_publishers(self.topic)

    def subscribe(self) -> None:
        self.monitor.reset()
        self._first = None
        for kind, topic, callback in (
            (CameraInfo, f"{self.prefix}camera_info", self._on_info),
            (self._type, self._topic, self._on_image),
        ):
            self._subscriptions.append(
                self._node.create_subscription(
                    kind,
                    topic,
                    callback,
                    qos.newest_only(),
                    qos_overriding_options=qos.overriding(),
                    event_callbacks=SubscriptionEventCallbacks(
                        incompatible_qos=qos.mismatch_reporter(self._node, topic, True, self._on_mismatch)
                    ),
                )
            )

    def unsubscribe(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._info = None

    def _on_info(self, info: CameraInfo) -> None:
        self._info = info

    def _on_image(self, image: Any) -> None:
        now = time.monotonic()
        self._first = self._first or now
        if self._info is None and now < self._first + INFO_GRACE:
            self.monitor.received(replaced=False)
            return
        self.monitor.received(self._put(Arrival(self.name, image, self._info, now)))

    def _on_mismatch(self, sentence: str) -> None:
        self.monitor.lasting("qos", sentence)
        self._report(f"{self.topic} qos", sentence)
