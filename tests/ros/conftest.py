"""Real rclpy and Fast DDS over shared memory, on a domain of this run's own. Without ROS these tests are skipped."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import deformer_core
from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint, save_checkpoint
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.runtime.batch import BatchEstimator
from deformer_core.runtime.engines import TorchEngine
from deformer_ros.pipeline import Model, make_model

os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "SHM"
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET"
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))

SMALL = DeFormerConfig(backbone="movenet_lightning", layers=1, dim=32, heads=2, ffn=32, points=1, regressor_hidden=64)
PHOTO = Path(deformer_core.__file__).parent / "data" / "demo" / "people.jpg"
WIDTH, HEIGHT = 240, 340
BOXES = np.array([[145, 174, 222, 330], [38, 16, 84, 156]], np.float32)
"""Of the two people in `picture`, by hand."""


@pytest.fixture(scope="session")
def ros() -> Iterator[Any]:
    """rclpy, initialised; skips where there is no ROS or the messages are not built."""
    reason = "ROS 2 is not here: make test-ros, or source a ROS install and this package's workspace"
    rclpy = pytest.importorskip("rclpy", reason=reason)
    pytest.importorskip("deformer_ros.msg", reason="this package's messages are not built: make ros, or colcon build")
    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights on the shipped backbone: it shows the template where the keypoints are."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    save_checkpoint(path, DeFormer.from_config(SMALL).eval(), {}, {"made by": "tests"})
    return path


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """(340, 240, 3) RGB: two people, cut from the shipped photo."""
    photo = cv2.resize(cv2.imread(str(PHOTO)), (640, 360), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(photo[10 : 10 + HEIGHT, 180 : 180 + WIDTH, ::-1])


class FixedDetector:
    """Finds two people, always in the same places."""

    def __init__(self) -> None:
        self.boxes, self.scores = BOXES, np.array([0.9, 0.8], np.float32)

    def __call__(self, image: np.ndarray, score: float = 0.4, max_people: int = 20) -> tuple[np.ndarray, np.ndarray]:
        kept = (self.scores >= score).nonzero()[0][:max_people]
        return self.boxes[kept], self.scores[kept]


@pytest.fixture
def detector() -> FixedDetector:
    return FixedDetector()


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> TorchEngine:
    return TorchEngine(load_checkpoint(checkpoint), threads=1)


@pytest.fixture
def load(engine: TorchEngine, body: BodyTopology, detector: FixedDetector) -> Callable[[Any], Model]:
    """Makes the model as the node does, with the fixed detector."""
    return lambda settings: make_model(BatchEstimator(engine, body), detector)


class Graph:
    """The node under test and another one that plays the rest of the robot, on one executor."""

    def __init__(self, rclpy: Any, load: Callable[[Any], Any], picture: np.ndarray) -> None:
        from rclpy.executors import SingleThreadedExecutor

        self._load, self._picture = load, picture
        self.executor = SingleThreadedExecutor()
        self.robot = rclpy.create_node("robot")
        self.executor.add_node(self.robot)
        self._nodes: list[Any] = [self.robot]

    def mesh_node(self, arguments: tuple[str, ...] = (), **parameters: Any) -> Any:
        """A human mesh node, unconfigured. arguments: after --ros-args."""
        from rclpy.parameter import Parameter

        from deformer_ros.human_mesh_node import HumanMeshNode

        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        node = HumanMeshNode(self._load, parameter_overrides=overrides, cli_args=["--ros-args", *arguments])
        self.executor.add_node(node)
        self._nodes.append(node)
        return node

    def spin(self, until: Callable[[], Any], seconds: float = 10.0) -> bool:
        """Spin until something is so; whether it came to be."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                return False
            self.executor.spin_once(timeout_sec=0.02)
        return True

    def listen(self, kind: type, topic: str, qos: Any = 10) -> list[Any]:
        """Everything that arrives from now on."""
        received: list[Any] = []
        self.robot.create_subscription(kind, topic, received.append, qos)
        return received

    def camera(self, prefix: str = "", **header: Any) -> Camera:
        return Camera(self.robot, self._picture, prefix, **header)

    def close(self) -> None:
        for node in self._nodes:
            self.executor.remove_node(node)
            node.destroy_node()
        self.executor.shutdown()
        # A node and its callbacks hold each other; while it lives, its name's log belongs to it.
        self._nodes.clear()
        gc.collect()


class Camera:
    """Publishes small images and their calibration."""

    def __init__(self, node: Any, picture: np.ndarray, prefix: str, frame_id: str = "camera_optical_frame") -> None:
        from rclpy.qos import qos_profile_sensor_data
        from sensor_msgs.msg import CameraInfo, Image

        self.images = node.create_publisher(Image, f"/{prefix}image", qos_profile_sensor_data)
        self.infos = node.create_publisher(CameraInfo, f"/{prefix}camera_info", qos_profile_sensor_data)
        self.frame_id, self.picture, self._node = frame_id, picture, node

    def image(self, stamp: float | None = None) -> Any:
        from builtin_interfaces.msg import Time
        from sensor_msgs.msg import Image

        message = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=WIDTH * 3)
        message.header.frame_id = self.frame_id
        message.header.stamp = (
            self._node.get_clock().now().to_msg()
            if stamp is None
            else Time(sec=int(stamp), nanosec=int(stamp % 1 * 1e9))
        )
        message.data = self.picture.tobytes()
        return message

    def info(self) -> Any:
        from sensor_msgs.msg import CameraInfo

        k = [300.0, 0.0, WIDTH / 2, 0.0, 300.0, HEIGHT / 2, 0.0, 0.0, 1.0]
        p = [300.0, 0.0, WIDTH / 2, 0.0, 0.0, 300.0, HEIGHT / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
        info = CameraInfo(height=HEIGHT, width=WIDTH, distortion_model="plumb_bob", d=[0.0] * 5, k=k, p=p)
        info.header.frame_id = self.frame_id
        return info

    def send(self, stamp: float | None = None) -> SimpleNamespace:
        """One image and its calibration."""
        info, image = self.info(), self.image(stamp)
        info.header.stamp = image.header.stamp
        self.infos.publish(info)
        self.images.publish(image)
        return SimpleNamespace(image=image, info=info)


@pytest.fixture
def graph(ros: Any, load: Callable[[Any], Any], picture: np.ndarray) -> Iterator[Graph]:
    made = Graph(ros, load, picture)
    yield made
    made.close()
