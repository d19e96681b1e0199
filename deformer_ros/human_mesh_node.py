"""The human mesh node: camera images in, people's meshes, joint transforms, markers and diagnostics out.

A lifecycle node. configure loads and warms up the model, activate subscribes, deactivate stops, cleanup frees. One
worker thread takes the newest image of every camera and works through them in one batch; callbacks only store.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from deformer_core.errors import InputError
from deformer_core.runtime.tracker import TrackState
from deformer_ros import parameters
from deformer_ros.cameras import Camera
from deformer_ros.diagnostics import Level, Status, Throttle, to_message
from deformer_ros.outputs import CameraOutputs, SharedOutputs, Topics
from deformer_ros.parameters import Settings
from deformer_ros.pipeline import Arrival, Model, Outcome, Pipeline, check_levels, load_model, seconds
from deformer_ros.process import run
from deformer_ros.worker import Worker

NAME = "human_mesh"
OLDEST_AGE = 60.0
"""Seconds. A stamp older than this, or of the future, is of another clock and says nothing about the image's age."""

Transition = Callable[["HumanMeshNode", LifecycleState], TransitionCallbackReturn]


def _logged(transition: Transition) -> Transition:
    """rclpy turns exceptions in transitions into ERROR without a word; say what it was."""

    @wraps(transition)
    def wrapper(self: HumanMeshNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except InputError as error:
            self.trouble = str(error)
            self.get_logger().error(f"{transition.__name__[3:]} failed: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.trouble = f"{transition.__name__[3:]} failed: {error}"
            self.get_logger().error(f"{self.trouble}\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR

    return wrapper


class HumanMeshNode(LifecycleNode):
    """load: makes the model from the settings when the node is configured."""

    def __init__(self, load: Callable[[Settings], Model] = load_model, **kwargs: Any):
        super().__init__(NAME, **kwargs)
        parameters.declare(self)
        self.settings = parameters.read(self)
        self.trouble = ""
        """Why the last transition failed."""
        self._load = load
        self._model: Model | None = None
        self._cameras: dict[str, Camera] = {}
        self._outputs: dict[str, CameraOutputs] = {}
        self._worker: Worker[Arrival] | None = None
        self._throttle = Throttle()
        self._topics = Topics(self, lambda text: self._log_now_and_then("qos", text), self._follow_listeners)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # By its own clock: diagnostics must go on when a simulation or a bag stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(self.settings.diagnostics_period_s, self._diagnose, clock=self._steady)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._take_parameters)

    # Lifecycle

    @_logged
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.trouble = ""
        try:
            self._set_up(self.settings)
        except BaseException:
            self._free()
            raise
        return super().on_configure(state)

    def _set_up(self, settings: Settings) -> None:
        start = time.monotonic()
        self._model = model = self._load(settings)
        check_levels(model, settings)
        self._cameras = {
            name: Camera(self, name, settings, self._put, self._log_now_and_then) for name in settings.camera_names
        }
        self._shared = SharedOutputs(self._topics, model)
        self._outputs = {
            name: CameraOutputs(self._topics, camera.prefix, model, self._shared, settings)
            for name, camera in self._cameras.items()
        }
        for note in filter(None, {self._shared.note, *(outputs.note for outputs in self._outputs.values())}):
            self.get_logger().warning(note)
        self._timer.timer_period_ns = int(settings.diagnostics_period_s * 1e9)
        topics = ", ".join(camera.topic for camera in self._cameras.values())
        engine = model.estimator.engine.description
        self.get_logger().info(f"Ready in {time.monotonic() - start:.1f} s: {engine}; images from {topics}")

    @_logged
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        assert self._model is not None
        rectified = {
            name: camera.is_rectified(self.settings.rectification) for name, camera in self._cameras.items()
        }
        self._pipeline = Pipeline(self._model, self.settings, rectified)
        self._applied: Settings | None = None
        result = super().on_activate(state)
        self._shared.publish_topology(self.settings)
        for outputs in self._outputs.values():
            outputs.clear_markers()
        self._worker = Worker(self._work, self._survive)
        self._worker.start()
        self._follow_listeners()
        return result

    @_logged
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._stop()
        for outputs in self._outputs.values():
            outputs.clear_markers()
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return super().on_shutdown(state)

    @_logged
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._free()
        return TransitionCallbackReturn.SUCCESS

    def _stop(self) -> None:
        for camera in self._cameras.values():
            camera.unsubscribe()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _free(self) -> None:
        self._stop()
        self._topics.destroy()
        self._outputs, self._cameras, self._model = {}, {}, None

    def destroy_node(self) -> None:
        self._stop()
        super().destroy_node()

    # Parameters

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        values = {change.name: change.value for change in changes}
        try:
            parameters.check_change(values, configured=self._model is not None)
            if self._model is not None:
                check_levels(self._model, parameters.changed(self.settings, values))
        except InputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _take_parameters(self, changes: list[Parameter]) -> None:
        # Others come here too: a subscription declares its qos_overrides, and must not lead back to itself.
        if not any(change.name in parameters.TABLE for change in changes):
            return
        old = self.settings
        self.settings = parameters.read(self)
        if self._worker is not None:
            if old.mesh_level != self.settings.mesh_level:
                self._shared.publish_topology(self.settings)
            self._follow_listeners()

    # From images to messages

    def _follow_listeners(self) -> None:
        """Subscribe to the cameras that somebody wants something of, leave the others."""
        if self._worker is None:
            return
        for name, camera in self._cameras.items():
            wanted = self._outputs[name].is_wanted(self.settings)
            if wanted and not camera.is_subscribed:
                camera.subscribe()
            elif not wanted and camera.is_subscribed:
                camera.unsubscribe()

    def _put(self, arrival: Arrival) -> bool:
        return self._worker is not None and self._worker.mailbox.put(arrival.camera, arrival)

    def _work(self, arrivals: list[Arrival]) -> None:
        """In the worker's thread."""
        taken = time.monotonic()
        if self._applied is not self.settings:
            self._apply(self.settings)
        for outcome in self._pipeline(arrivals):
            camera = self._cameras[outcome.camera]
            for key, note in outcome.notes.items():
                self._log_now_and_then(f"{camera.name} {key}", f"{camera.topic}: {note}")
            try:
                if outcome.problem:
                    raise InputError(outcome.problem)
                start = time.monotonic()
                self._outputs[outcome.camera].publish(outcome)
                self._record(camera, outcome, taken, start)
            except InputError as error:
                camera.monitor.failed(str(error))
                self._log_now_and_then(f"{camera.name} problem", f"{camera.topic}: {error}")

    def _apply(self, settings: Settings) -> None:
        for outputs in self._outputs.values():
            outputs.apply(settings)
        self._pipeline.settings = self._applied = settings

    def _record(self, camera: Camera, outcome: Outcome, taken: float, published: float) -> None:
        now = time.monotonic()
        stages = {"wait": taken - outcome.received} | outcome.stages
        stages |= {"publish": now - published, "total": now - outcome.received}
        age = self.get_clock().now().nanoseconds * 1e-9 - seconds(outcome.header.stamp)
        if 0 <= age < OLDEST_AGE:
            stages["age of the image when published"] = age
        people = sum(track.state != TrackState.LOST for track in outcome.tracks[self._pipeline.settings.mesh_level])
        camera.monitor.lasting("calibration", "" if outcome.is_calibrated else outcome.calibration)
        if not outcome.is_calibrated:
            self._log_now_and_then(f"{camera.name} calibration", f"{camera.topic}: {outcome.calibration}", once=True)
        camera.monitor.done(stages, people, outcome.calibration, outcome.reason)

    def _survive(self, error: Exception) -> None:
        """An error that nobody foresaw: say it, go on with the next image."""
        if not self.context.ok():
            return
        for camera in self._cameras.values():
            camera.monitor.failed(f"internal error: {error}")
        self._log_now_and_then("internal", "".join(traceback.format_exception(error)), logging.ERROR)

    # Reports

    def _log_now_and_then(self, key: str, text: str, level: int = logging.WARNING, once: bool = False) -> None:
        if self._throttle(key, once):
            log(self.get_logger(), level, text)

    def _diagnose(self) -> None:
        self._follow_listeners()
        statuses, timeout = [self._own_status()], self.settings.image_timeout_s
        for name, camera in self._cameras.items() if self._worker is not None else ():
            wanted, publishers = self._outputs[name].is_wanted(self.settings), camera.publisher_count()
            statuses.append(camera.monitor.status(wanted, publishers, timeout))
            if wanted and (silence := camera.monitor.silence(publishers, timeout)):
                self._log_now_and_then(f"{name} silent", silence)
        stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(to_message(statuses, stamp, self.get_fully_qualified_name()))

    def _own_status(self) -> Status:
        state = self._state_machine.current_state[1]
        if self._model is None:
            level = Level.ERROR if self.trouble else Level.OK
            return Status(f"{self.get_name()}: model", level, self.trouble or state, {"state": state})
        estimator = self._model.estimator
        values = {
            "state": state,
            "engine": estimator.engine.description,
            "checkpoint": self.settings.checkpoint,
            "people at once": str(estimator.max_crops),
        }
        notes = {self._shared.note, *(outputs.note for outputs in self._outputs.values())} - {""}
        if estimator.is_reduced:
            notes.add(f"the GPU is short of memory: {estimator.max_crops} people at a time")
        message = "; ".join([state, *sorted(notes)])
        return Status(f"{self.get_name()}: model", Level.WARN if notes else Level.OK, message, values)


class _ToRos(logging.Handler):
    """The core's log lines, in the node's log."""

    def __init__(self, logger: RcutilsLogger):
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        log(self._logger, record.levelno, record.getMessage())


def log(logger: RcutilsLogger, level: int, text: str) -> None:
    """Say something at a level of `logging`; rclpy insists on one level per line of source."""
    if level >= logging.ERROR:
        logger.error(text)
    elif level >= logging.WARNING:
        logger.warning(text)
    else:
        logger.info(text)


def main(args: list[str] | None = None) -> None:
    """Run the node until it is told to end. Wrong parameters end it at once, with one line."""
    run(NAME, start, args)


def start() -> HumanMeshNode:
    """A node, at work unless autostart is off. One that cannot be configured stays, so that what is wrong shows in
    diagnostics and can be set right."""
    node = HumanMeshNode()
    core = logging.getLogger("deformer_core")
    core.setLevel(logging.INFO)
    core.addHandler(_ToRos(node.get_logger()))
    if node.settings.autostart and node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
        node.trigger_activate()
    return node
