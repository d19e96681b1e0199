"""A camera that plays a video file: for trying the human mesh node without hardware, and for its demo and benchmark.

Publishes image_raw (sensor_msgs/Image, rgb8) and camera_info. Parameters: video (path; the shipped clip), rate (images
per second; 0 is the video's own), loop, frame_id, fov_deg (diagonal, for camera_info).
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

import deformer_core
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics
from deformer_ros.process import run

CLIP = Path(deformer_core.__file__).parent / "data" / "demo" / "clip.mp4"
NAME = "video_camera"


class VideoCamera(Node):
    """Plays on a timer, with the present time as stamp. Errors: `InputError` for a video that cannot be opened."""

    def __init__(self, **kwargs: Any):
        super().__init__(NAME, **kwargs)
        path = self.declare_parameter("video", str(CLIP)).value
        rate = self.declare_parameter("rate", 0.0).value
        self._loop = self.declare_parameter("loop", True).value
        self._frame_id = self.declare_parameter("frame_id", "camera_color_optical_frame").value
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise InputError(f"cannot play the video {path}: check the path")
        width, height = (int(self._capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        fov = self.declare_parameter("fov_deg", 55.0).value
        self._info = _camera_info(Intrinsics.from_fov(width, height, fov), self._frame_id)
        self._images = self.create_publisher(Image, "image_raw", QoSProfile(depth=1))
        self._infos = self.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=1))
        self._timer = self.create_timer(1 / (rate or self._capture.get(cv2.CAP_PROP_FPS) or 30.0), self._send)

    def _send(self) -> None:
        picture = self._next()
        if picture is None:
            self.get_logger().info("The video is over")
            self._timer.cancel()
            return
        self._info.header.stamp = self.get_clock().now().to_msg()
        height, width = picture.shape[:2]
        image = Image(header=self._info.header, height=height, width=width, encoding="rgb8", step=width * 3)
        image.data = array("B", picture.tobytes())
        self._infos.publish(self._info)
        self._images.publish(image)

    def _next(self) -> np.ndarray | None:
        found, picture = self._capture.read()
        if not found and self._loop:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            found, picture = self._capture.read()
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if found else None


def _camera_info(camera: Intrinsics, frame_id: str) -> CameraInfo:
    info = CameraInfo(width=camera.width, height=camera.height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.header.frame_id = frame_id
    info.k = camera.matrix.ravel().tolist()
    info.r = np.eye(3).ravel().tolist()
    info.p = np.insert(camera.matrix, 3, 0, axis=1).ravel().tolist()
    return info


def main(args: list[str] | None = None) -> None:
    """Play until the end, or until told to stop."""
    run(NAME, VideoCamera, args)
