"""What the node tells about itself: rates, latencies, and one sentence on how each camera is doing.

Only `to_message` needs ROS.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

WINDOW = 5.0
"""Seconds over which rates are measured."""
SAMPLES = 200
"""Most recent frames over which latencies are measured."""
QUIET = 5.0
"""Seconds before the same problem of the same camera is logged again."""

Clock = Callable[[], float]


class Level(IntEnum):
    """Of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass
class Status:
    """One line of a diagnostics message."""

    name: str
    level: Level
    message: str
    values: dict[str, str] = field(default_factory=dict)


class Throttle:
    """Says whether it is time again to say something."""

    def __init__(self, period: float = QUIET, clock: Clock = time.monotonic):
        self._period, self._clock = period, clock
        self._last: dict[str, float] = {}

    def __call__(self, key: str, once: bool = False) -> bool:
        """key: of what is to be said. once: never again."""
        now = self._clock()
        if key in self._last and (once or now - self._last[key] < self._period):
            return False
        self._last[key] = now
        return True


class Rate:
    """Events per second over the last `WINDOW`."""

    def __init__(self, clock: Clock = time.monotonic):
        self._clock = clock
        self._start = clock()
        self._times: deque[float] = deque()
        self.last: float | None = None
        """When the last event was."""

    def count(self) -> None:
        self.last = self._clock()
        self._times.append(self.last)
        self._forget(self.last)

    def per_second(self) -> float:
        now = self._clock()
        self._forget(now)
        return len(self._times) / max(min(WINDOW, now - self._start), 1e-3)

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - WINDOW:
            self._times.popleft()


class CameraMonitor:
    """Everything that is known about how one camera is doing. Safe to use from several threads.

    name: of the camera in diagnostics. topic: of its images.
    """

    def __init__(self, name: str, topic: str, clock: Clock = time.monotonic):
        self.name, self.topic = name, topic
        self._clock, self._lock = clock, threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget everything, as at the start."""
        with self._lock:
            self._start = self._clock()
            self._in, self._out = Rate(self._clock), Rate(self._clock)
            self._dropped = 0
            self._stages: dict[str, deque[float]] = {}
            self._frame: tuple[Level, str] | None = None
            self._lasting: dict[str, tuple[Level, str]] = {}
            self._people = 0
            self._camera = "not seen yet"

    def received(self, replaced: bool) -> None:
        """An image has arrived, and perhaps replaced one that was still waiting."""
        with self._lock:
            self._in.count()
            self._dropped += replaced

    def failed(self, text: str) -> None:
        """The last image could not be used."""
        with self._lock:
            self._frame = (Level.ERROR, text)

    def done(self, stages: dict[str, float], people: int, camera: str, reason: str) -> None:
        """An image has been worked through.

        stages: seconds by name. camera: state of its calibration. reason: why nobody was found, or "".
        """
        with self._lock:
            self._out.count()
            self._people, self._camera = people, camera
            self._frame = (Level.OK, reason or f"{people} {'person' if people == 1 else 'people'}")
            for stage, seconds in stages.items():
                self._stages.setdefault(stage, deque(maxlen=SAMPLES)).append(seconds)

    def lasting(self, key: str, text: str, level: Level = Level.WARN) -> None:
        """A state that holds until it is told otherwise; an empty text ends it."""
        with self._lock:
            if text:
                self._lasting[key] = (level, text)
            else:
                self._lasting.pop(key, None)

    def status(self, wanted: bool, publishers: int, timeout: float) -> Status:
        """The camera in one line.

        wanted: somebody listens to what comes of it. publishers: of its image topic. timeout: seconds without an
        image after which it is silent.
        """
        with self._lock:
            level, message = self._judge(wanted)
            if wanted and (silence := self._silence(publishers, timeout)):
                level, message = silence
            for extra_level, text in self._lasting.values():
                level, message = max(level, extra_level), f"{message}; {text}"
            values = {
                "fps in": f"{self._in.per_second():.1f}",
                "fps out": f"{self._out.per_second():.1f}",
                "dropped": str(self._dropped),
                "people": str(self._people),
                "camera": self._camera,
                "topic": self.topic,
                "publishers": str(publishers),
            }
            for stage, seconds in self._stages.items():
                p50, p95 = np.percentile(np.array(seconds), (50, 95)) * 1e3
                values[f"{stage} p50 p95 [ms]"] = f"{p50:.1f} {p95:.1f}"
        return Status(self.name, level, message, values)

    def silence(self, publishers: int, timeout: float) -> str:
        """What is to be said of a camera that should send and does not; "" if it does."""
        with self._lock:
            found = self._silence(publishers, timeout)
        return found[1] if found else ""

    def _silence(self, publishers: int, timeout: float) -> tuple[Level, str] | None:
        last = self._in.last
        silent = self._clock() - (self._start if last is None else last)
        if silent <= timeout:
            return None
        if last is None:
            return Level.WARN, f"no image yet on {self.topic}{_publisher_hint(publishers)}"
        return Level.ERROR, f"no image for {silent:.1f} s on {self.topic}{_publisher_hint(publishers)}"

    def _judge(self, wanted: bool) -> tuple[Level, str]:
        if not wanted:
            return Level.OK, "idle: nobody listens"
        return self._frame or (Level.OK, "waiting for the first image")


def _publisher_hint(publishers: int) -> str:
    if publishers == 0:
        return ", which has no publisher: start the camera or remap the topic"
    return f", though it has {publishers} publisher(s): check that they send, and their QoS"


def to_message(statuses: Iterable[Status], stamp: Any, hardware_id: str) -> Any:
    """A diagnostic_msgs/DiagnosticArray."""
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    message = DiagnosticArray()
    message.header.stamp = stamp
    message.status = [
        DiagnosticStatus(
            name=status.name,
            level=bytes([status.level]),
            message=status.message,
            hardware_id=hardware_id,
            values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
        )
        for status in statuses
    ]
    return message
