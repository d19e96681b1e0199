"""What the node costs beside the model: `make bench-ros`.

serialization   one MarkerArray by way of Point objects, and spliced from numpy
overhead        CPU time of the whole node process per image (callbacks, decoding, cropping, placing, tracking,
                smoothing, messages, middleware), with a detector and an engine that answer at once, at a camera's rate
image age       from a camera in another process to the node's callback, and to what is published
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import rclpy
from demo import FROM_CAMERA, PROFILE
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from deformer_core.body.assets import load_body
from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.runtime.batch import BatchEstimator
from deformer_ros.human_mesh_node import HumanMeshNode
from deformer_ros.markers import MarkerSerializer, MarkerStyle, compare_paths
from deformer_ros.pipeline import make_model, seconds

ROOT = Path(__file__).parents[2]
BOXES = np.array([[40, 20, 240, 480], [300, 20, 500, 480], [600, 20, 800, 480]], np.float32)


class InstantEngine:
    """Answers with the template body. image_size: as of the default model."""

    image_size = 256
    description = "instant"
    crop_device = None

    def __init__(self, body: BodyTopology):
        full = body.levels["full"]
        self._one = {f"vertices_{name}": body.levels[name].vertices for name in LEVELS}
        self._one |= {"joints": full.joint_regressor.apply(full.vertices), "camera": np.array([0.8, 0, 0], np.float32)}
        self._one["keypoints"] = np.ones((17, 3), np.float32)

    def __call__(self, crops: np.ndarray, box: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.broadcast_to(array, (len(crops), *array.shape)) for name, array in self._one.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run of the node")
    parser.add_argument("--rate", type=float, default=15.0, help="images per second")
    options = parser.parse_args()
    os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = PROFILE
    body = load_body()
    serialization(body)
    rclpy.init()
    for people in (0, 1, 3):
        overhead(body, people, options.rate, options.seconds)
    rclpy.shutdown()


def serialization(body: BodyTopology) -> None:
    for level in LEVELS:
        mesh = body.levels[level]
        person = SimpleNamespace(
            id=1, score=0.9, translation=np.array([0, 0, 3.0], np.float32), vertices=mesh.vertices, level=level
        )
        person.joints = mesh.joint_regressor.apply(mesh.vertices)
        header = Header(frame_id="camera_color_optical_frame")
        slow, fast = compare_paths(MarkerSerializer(body, level, MarkerStyle()), header, [person])
        print(
            f"serialization, {level:6s} {len(mesh.faces):6d} triangles: objects {slow * 1e3:8.2f} ms, "
            f"numpy {fast * 1e3:6.3f} ms, ratio {slow / fast:.0f}"
        )


def overhead(body: BodyTopology, people: int, rate: float, duration: float) -> None:
    """Run the node in this process, camera and listener in others, and divide its CPU time by its images."""
    boxes, scores = BOXES[:people], np.full(people, 0.9, np.float32)
    model = make_model(BatchEstimator(InstantEngine(body), body), lambda image, score, max_people: (boxes, scores))
    off = Parameter("autostart", value=False)
    node = MeasuredNode(lambda settings: model, parameter_overrides=[off], cli_args=["--ros-args", *FROM_CAMERA])
    others = [
        ROOT / "scripts" / "video_camera", "--ros-args", "-r", "__ns:=/camera", "-p", f"rate:={rate}"
    ], [Path(__file__).with_name("listener.py"), "/human_mesh/meshes", "/human_mesh/markers", "/tf"]
    processes = [subprocess.Popen([sys.executable, *command]) for command in others]
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        node.trigger_configure()
        node.trigger_activate()
        spin(executor, lambda: len(node.ages) > 2 * rate, 60)
        node.ages.clear()
        start, images = time.process_time(), len(node.ages)
        spin(executor, lambda: False, duration)
        spent, images = time.process_time() - start, len(node.ages)
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
            process.wait()
        executor.remove_node(node)
        node.destroy_node()
    arrived, published = np.percentile(np.array(node.ages), (50, 95), axis=0).T * 1e3
    print(
        f"overhead, {people} people: {spent / max(images, 1) * 1e3:.2f} ms CPU per image of the whole process, "
        f"{np.median(node.worked) * 1e3:.2f} ms of it in the worker; {images / duration:.1f} images/s\n"
        f"  image age p50, p95: at the callback {arrived[0]:.1f}, {arrived[1]:.1f} ms; "
        f"when published {published[0]:.1f}, {published[1]:.1f} ms"
    )


class MeasuredNode(HumanMeshNode):
    """Notes when images come and when what is made of them has been sent."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.ages, self.worked, self._came = [], [], {}

    def _put(self, arrival):
        self._came[seconds(arrival.image.header.stamp)] = time.time()
        return super()._put(arrival)

    def _work(self, arrivals):
        start = time.thread_time()
        super()._work(arrivals)
        self.worked.append(time.thread_time() - start)
        for arrival in arrivals:
            stamp = seconds(arrival.image.header.stamp)
            self.ages.append((self._came.pop(stamp) - stamp, time.time() - stamp))


def spin(executor: SingleThreadedExecutor, until, duration: float) -> None:
    end = time.monotonic() + duration
    while not until() and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)


if __name__ == "__main__":
    main()
