"""Bag to bag: what the live node would have published, recorded beside everything that was in the bag.

The original messages go through undecoded, at their record times and in their order. What is made of an image follows
it, at its record time and under its header. Several images are worked through in one batch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from deformer_core.checkpoint import checkpoint_path
from deformer_core.errors import InputError
from deformer_core.runtime.tracker import TrackState
from deformer_ros.bag_cameras import INFO, NODE, Camera, check_free, find_cameras, of_topics
from deformer_ros.bag_io import BagReader, BagTypes, BagWriter, Connection, DamagedBagError
from deformer_ros.bag_progress import EngineError, Recorder, Workspace, fingerprint
from deformer_ros.human_messages import mesh_topology
from deformer_ros.outcome_messages import BodyMessages, MarkerMessages
from deformer_ros.parameters import Settings, check
from deformer_ros.pipeline import Arrival, Model, Outcome, Pipeline, check_levels, load_model

BATCH = 8
"""Images worked through at once."""
MOST_HELD = 1 << 29
"""Bytes of messages that may wait for a batch to fill up; beyond, it is worked through as it is."""
DEFAULTS = Settings(mesh_level="middle")
"""Full meshes would be ten times as large."""

Report = Callable[[str], None]


@dataclass
class Summary:
    """What was done. seconds: without loading the model; engine_seconds: those of detection and reconstruction."""

    images: int = 0
    unusable: int = 0
    images_with_people: int = 0
    seconds: float = 0.0
    engine_seconds: float = 0.0
    recorded_seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.recorded_seconds / max(self.seconds, 1e-9)
        beyond = 1e3 * (self.seconds - self.engine_seconds) / max(self.images, 1)
        unusable = f" ({self.unusable} unusable)" if self.unusable else ""
        return (
            f"{self.images} images{unusable}, people in {self.images_with_people}; {self.seconds:.1f} s for "
            f"{self.recorded_seconds:.1f} s of recording ({rate:.2g} times real time), {beyond:.1f} ms per image "
            "beyond the engine"
        )


def process_bag(
    source: Path,
    target: Path,
    images: Sequence[str],
    infos: Sequence[str] = (),
    settings: Settings = DEFAULTS,
    batch: int = BATCH,
    overwrite: bool = False,
    load: Callable[[Settings], Model] = load_model,
    report: Report = print,
) -> Summary:
    """Write the bag `target`: all of `source`, and what the node publishes for its images.

    images: image topics, one per camera. infos: their CameraInfo topics, by default those beside them. batch: images
    worked through at once. report: takes lines for the user. A run that was killed is taken up where it was by
    calling with the same arguments; until all is done there is no `target`, only a folder `target`.partial.

    Raises:
        InputError: a bag, topic or setting that cannot be used, a full disk, or a target that exists already.
    """
    if batch < 1 or not 0 <= settings.smoothing <= 1:
        raise InputError("--batch must be at least 1 and --smoothing between 0 and 1")
    check("device", settings.device)
    if source.resolve() == target.resolve() or source.resolve() in target.resolve().parents:
        raise InputError(f"{target} is or lies in {source}: write to another folder")
    workspace = Workspace(target)
    workspace.check(overwrite)
    with BagReader(source) as reader:
        cameras = find_cameras(reader, images, infos, settings.rectification)
        check_free(reader, cameras)
        model = load(settings)
        check_levels(model, settings)
        report(f"Engine: {model.estimator.engine.description}")
        files = {"bag": fingerprint(reader.files), "checkpoint": fingerprint([checkpoint_path(settings.checkpoint)])}
        run = {**files, "cameras": cameras, "settings": asdict(settings), "batch": batch}
        try:
            with workspace.opened(run, overwrite):
                return _process(reader, workspace, cameras, model, settings, batch, report)
        except DamagedBagError:
            workspace.discard()  # mended, it is another bag
            raise
        except (OSError, EngineError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot make the bag {target} ({reason}): what is done is kept in {workspace.folder}, the same "
                "command goes on from there once that is set right"
            ) from error


def _process(
    reader: BagReader,
    workspace: Workspace,
    cameras: Sequence[Camera],
    model: Model,
    settings: Settings,
    batch: int,
    report: Report,
) -> Summary:
    recorder = Recorder(model, workspace.people)
    if recorder.known:
        report(f"Going on after {recorder.known} batches of up to {batch} images that were done before")
    pipeline = Pipeline(
        model._replace(estimator=recorder, detector=recorder.detect),
        settings,
        {camera.name: camera.is_rectified for camera in cameras},
    )
    types = BagTypes()
    with BagWriter(workspace.bag, reader, types) as writer:
        total = sum(connection.msgcount for connection in of_topics(reader, [camera.image for camera in cameras]))
        with tqdm(total=total, unit="image", disable=None) as bar:
            outputs = Outputs(writer, types, model, settings, cameras)
            converter = _Converter(reader, writer, types, pipeline, outputs, cameras, report)
            start = time.monotonic()
            summary = converter.run(batch, bar.update)
    if summary.unusable == summary.images:
        workspace.discard()
        raise InputError(f"none of the {summary.images} images of {reader.path} can be used: {converter.problem}")
    workspace.finish()
    summary.seconds, summary.recorded_seconds = time.monotonic() - start, reader.duration
    return summary


class Outputs:
    """Writes what the node publishes. Qualities of service are those of `qos`."""

    def __init__(self, writer: BagWriter, types: BagTypes, model: Model, settings: Settings, cameras: Sequence[Camera]):
        self._writer, self._types, self._settings = writer, types, settings
        self._topology = writer.add_topic(f"{NODE}/topology", "deformer_ros/msg/MeshTopology", 1, latched=True)
        self._tf = writer.add_topic("/tf", "tf2_msgs/msg/TFMessage", 100)
        self._meshes = {
            camera.name: writer.add_topic(f"{camera.prefix}meshes", "deformer_ros/msg/HumanMeshArray", 5)
            for camera in cameras
        }
        self._markers = {
            camera.name: writer.add_topic(f"{camera.prefix}markers", "visualization_msgs/msg/MarkerArray", 5)
            for camera in cameras
        }
        self._bodies = BodyMessages(model, types)
        self._make_markers = {camera.name: MarkerMessages(model, settings, types) for camera in cameras}
        self._mesh_topology = mesh_topology(model.topology, settings.mesh_level, types)

    def write_topology(self, time: int) -> None:
        self._writer.write(self._topology, time, self._types.serialize(self._mesh_topology))

    def write(self, outcome: Outcome, time: int) -> None:
        """All messages of one image. time: its record time, nanoseconds."""
        camera, serialize = outcome.camera, self._types.serialize
        poses = self._bodies.measure(outcome)
        meshes = self._bodies.meshes(outcome, poses, self._settings.mesh_level)
        self._writer.write(self._meshes[camera], time, serialize(meshes))
        if transforms := self._bodies.transforms(outcome, poses):
            message = self._types("tf2_msgs/msg/TFMessage")(transforms=transforms)
            self._writer.write(self._tf, time, serialize(message))
        # Paced by the recording's time: played back it gives what the live node would.
        if markers := self._make_markers[camera](outcome, time * 1e-9):
            self._writer.write(self._markers[camera], time, markers)


class _Held(NamedTuple):
    """A message that waits for its turn to be written. is_image: one that the pipeline shall see."""

    connection: Connection
    time: int
    raw: bytes
    is_image: bool


class _Converter:
    """One pass over the bag."""

    def __init__(
        self,
        reader: BagReader,
        writer: BagWriter,
        types: BagTypes,
        pipeline: Pipeline,
        outputs: Outputs,
        cameras: Sequence[Camera],
        report: Report,
    ):
        self._reader, self._writer, self._types = reader, writer, types
        self._pipeline, self._outputs, self._report = pipeline, outputs, report
        self._told: set[tuple[str, str]] = set()
        self._summary = Summary()
        self.problem = ""
        """Why the last unusable image was so."""
        self._by_image = {camera.image: camera for camera in cameras}
        self._infos: dict[str | None, Any] = {info: self._first_info(info) for _, _, _, info, _ in cameras if info}
        self._arrivals: list[Arrival] = []
        self._held: list[_Held] = []
        self._held_bytes = 0

    def run(self, batch: int, tick: Callable[[int], object]) -> Summary:
        """batch: images at once. tick: is told how many more images are done."""
        is_first = True
        for connection, time_ns, raw in self._reader.messages():
            if is_first:
                self._outputs.write_topology(time_ns)
                is_first = False
            is_image = self._take(connection, raw)
            self._held.append(_Held(connection, time_ns, raw, is_image))
            self._held_bytes += len(raw)
            if not self._arrivals or len(self._arrivals) == batch or self._held_bytes > MOST_HELD:
                tick(self._flush())
        tick(self._flush())
        return self._summary

    def _take(self, connection: Connection, raw: bytes) -> bool:
        """Decode what is of interest. Returns whether the pipeline gets the message as an image."""
        topic = connection.topic
        if topic in self._infos:
            self._infos[topic] = self._decode(raw, INFO, topic) or self._infos[topic]
        if camera := self._by_image.get(topic):
            self._summary.images += 1
            if image := self._decode(raw, camera.type, topic):
                self._arrivals.append(Arrival(camera.name, image, self._infos.get(camera.info), time.monotonic()))
                return True
            self._summary.unusable += 1
        return False

    def _flush(self) -> int:
        """Work through the batch and write everything that is held. Returns the number of images."""
        outcomes = iter(self._pipeline(self._arrivals) if self._arrivals else ())
        reconstruct = 0.0
        for held in self._held:
            self._writer.copy(held.connection, held.time, held.raw)
            if held.is_image:
                outcome = next(outcomes)
                reconstruct = outcome.stages.get("reconstruct", reconstruct)  # that of the whole batch
                self._write(outcome, held)
        self._summary.engine_seconds += reconstruct
        count = len(self._arrivals)
        self._arrivals, self._held, self._held_bytes = [], [], 0
        return count

    def _write(self, outcome: Outcome, held: _Held) -> None:
        topic, summary = held.connection.topic, self._summary
        for kind, note in outcome.notes.items():
            self._tell(topic, kind, note)
        if outcome.problem:
            summary.unusable += 1
            self._fail(topic, outcome.problem)
            return
        if not outcome.is_calibrated:
            self._tell(topic, "calibration", outcome.calibration)
        summary.engine_seconds += outcome.stages["detect"]
        tracks = outcome.tracks[self._pipeline.settings.mesh_level]
        summary.images_with_people += any(track.state != TrackState.LOST for track in tracks)
        self._outputs.write(outcome, held.time)

    def _first_info(self, topic: str) -> Any | None:
        """A camera's first calibration in the bag, for images that come before it."""
        messages = self._reader.messages(of_topics(self._reader, [topic]))
        _, _, raw = next(messages, (None, 0, b""))
        messages.close()
        return self._decode(raw, INFO, topic) if raw else None

    def _decode(self, raw: bytes, kind: str, topic: str) -> Any | None:
        try:
            return self._types.deserialize(raw, kind)
        except InputError as error:
            self._fail(topic, str(error))
            return None

    def _fail(self, topic: str, problem: str) -> None:
        self.problem = problem
        self._tell(topic, "problem", f"{problem} (said once; such messages go through, nothing is made of them)")

    def _tell(self, topic: str, kind: str, text: str) -> None:
        """Each kind of oddity once a topic."""
        if (topic, kind) not in self._told:
            self._told.add((topic, kind))
            self._report(f"{topic}: {text}")


def run(arguments: Any) -> int:
    """`deformer bag`. arguments: the parsed options. Returns the exit code; errors as `process_bag`."""
    settings = Settings(
        checkpoint=arguments.model,
        engine=arguments.engine,
        device=arguments.device,
        threads=arguments.threads,
        rectification="rectified" if arguments.rectified else "auto",
        mirrored=arguments.mirrored,
        smoothing=arguments.smoothing,
        mesh_level=arguments.level,
    )
    try:
        summary = process_bag(
            arguments.input,
            arguments.output,
            arguments.image,
            arguments.camera_info,
            settings,
            arguments.batch,
            arguments.overwrite,
            report=lambda text: tqdm.write(text, file=sys.stderr),
        )
    except KeyboardInterrupt:
        print("\nStopped: the same command goes on from here.", file=sys.stderr)
        return 130
    print(f"{arguments.output}: {summary}")
    return 0
