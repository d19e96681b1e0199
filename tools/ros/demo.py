"""The node at work without a camera and without a ROS install: `make demo-ros`.

Starts the video camera and the human mesh node, records what they send into a bag for a while, then reads the bag back
and prints rates, latency and contents. Ends with 1 if anything that should be there is not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from picture import draw
from recorder import Recorder, typestore
from rosbags.highlevel import AnyReader

ROOT = Path(__file__).parents[2]
PROFILE = str(ROOT / "config" / "shared_memory.xml")
PATIENCE = 600.0
"""Seconds for the first people to come: the model may have to be exported first."""
MESHES, TOPOLOGY, INFO = "/human_mesh/meshes", "/human_mesh/topology", "/camera/camera_info"
FROM_CAMERA = (
    *("-r", "image:=/camera/image_raw", "-r", f"camera_info:={INFO}"),
    *("-p", "qos_overrides./camera/image_raw.subscription.reliability:=reliable"),
)
TOPICS = {
    TOPOLOGY: "deformer_ros/msg/MeshTopology",
    MESHES: "deformer_ros/msg/HumanMeshArray",
    "/human_mesh/markers": "visualization_msgs/msg/MarkerArray",
    "/tf": "tf2_msgs/msg/TFMessage",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
    INFO: "sensor_msgs/msg/CameraInfo",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="to record, once the first people have come")
    parser.add_argument("--checkpoint", default="small")
    parser.add_argument("--out", type=Path, default=Path("out/demo-ros"), help="folder of the bag, overwritten")
    options = parser.parse_args()
    bag = options.out / "bag"
    shutil.rmtree(bag, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["FASTRTPS_DEFAULT_PROFILES_FILE"] = PROFILE
    processes = [
        start("video_camera", "-r", "__ns:=/camera"),
        start("human_mesh_node", "-p", f"checkpoint:={options.checkpoint}", *FROM_CAMERA),
    ]
    try:
        came = record(bag, options.seconds, processes)
    finally:
        for process in processes:
            process.send_signal(signal.SIGINT)
        ends = [process.wait(timeout=60) for process in processes]
    if not came:
        print("No people came: see the node's lines above.")
        return 1
    print(f"\nRecorded into {bag}:")
    is_complete = report(bag)
    draw(bag, options.out / "markers.png")
    print(f"  the markers, drawn: {options.out / 'markers.png'}")
    return int(not is_complete or any(ends))


def start(script: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, ROOT / "scripts" / script, "--ros-args", *arguments])


def record(bag: Path, seconds: float, processes: list[subprocess.Popen]) -> bool:
    """Record until `seconds` after the first people; whether any came."""
    from deformer_ros.msg import HumanMeshArray

    people: list[HumanMeshArray] = []
    trouble: list[str] = []

    def on_diagnostics(message: DiagnosticArray) -> None:
        trouble.extend(status.message for status in message.status if status.level == DiagnosticStatus.ERROR)

    rclpy.init()
    node = rclpy.create_node("recorder")
    with Recorder(node, bag, TOPICS, latched=(TOPOLOGY,)):
        node.create_subscription(DiagnosticArray, "/diagnostics", on_diagnostics, 10)
        first = node.create_subscription(HumanMeshArray, MESHES, people.append, 1)
        end = time.monotonic() + PATIENCE
        while not (people or trouble) and time.monotonic() < end and all(p.poll() is None for p in processes):
            rclpy.spin_once(node, timeout_sec=0.1)
        node.destroy_subscription(first)
        end = time.monotonic() + seconds
        while people and time.monotonic() < end:
            rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown()
    return bool(people)


def report(bag: Path) -> bool:
    """Print what a bag holds; whether it is as it should be."""
    times: dict[str, list[int]] = defaultdict(list)
    latencies, people, sent, meshes = [], [], set(), set()
    topology, diagnostics = "", None
    with AnyReader([bag], default_typestore=typestore()) as reader:
        for connection, arrival, raw in reader.messages():
            times[connection.topic].append(arrival)
            if connection.topic not in (MESHES, TOPOLOGY, INFO, "/diagnostics"):
                continue
            message = reader.deserialize(raw, connection.msgtype)
            if connection.topic == TOPOLOGY:
                topology = message.name
                print(f"  topology {message.name}, level {message.level}, {len(message.triangles) // 3} triangles")
            elif connection.topic == "/diagnostics":
                diagnostics = message
            else:
                stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                (sent if connection.topic == INFO else meshes).add(stamp)
                if connection.topic == MESHES:
                    latencies.append((arrival - stamp) / 1e6)
                    people.append(len(message.humans))
    for topic in TOPICS:
        span = (max(times[topic]) - min(times[topic])) / 1e9 if times[topic] else 0.0
        rate = f"{(len(times[topic]) - 1) / span:8.1f} Hz" if span else ""
        print(f"  {topic:24s} {len(times[topic]):6d} messages {rate}")
    p50, p95 = np.percentile(latencies or [np.nan], (50, 95))
    mean = np.mean(people or [0])
    print(f"  image to recorded mesh: p50 {p50:.0f} ms, p95 {p95:.0f} ms; people per image: {mean:.2f}")
    for status in diagnostics.status if diagnostics else ():
        print(f"  {status.name}: {status.message}")
        print("    " + ", ".join(f"{entry.key} {entry.value}" for entry in status.values))
    known = len(meshes & sent) / max(len(meshes), 1)
    print(f"  meshes under the stamp of a recorded camera_info: {known:.0%}")
    return all(times[topic] for topic in TOPICS) and bool(topology) and known > 0.5 and max(people, default=0) > 0


if __name__ == "__main__":
    sys.exit(main())
