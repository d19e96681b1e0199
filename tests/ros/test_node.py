"""The node at work, over real topics: outputs, parameters, quality of service, bad input, endurance."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MESHES, MARKERS, TOPOLOGY = "/human_mesh/meshes", "/human_mesh/markers", "/human_mesh/topology"


def activate(node: Any) -> Any:
    node.trigger_configure()
    node.trigger_activate()
    return node


def play(graph: Any, send: Callable[[], Any], until: Any, seconds: float = 30.0, rate: float = 20.0) -> bool:
    """Send images at a camera's rate until something is so.

    Not as fast as can be: this process is also the node's, whose worker would wait for Python's lock all the time.
    """
    due = 0.0

    def step() -> bool:
        nonlocal due
        if time.monotonic() > due:
            due = time.monotonic() + 1 / rate
            send()
        return bool(until())

    return graph.spin(step, seconds)


def status(graph: Any, heard: list[Any], name: str = "human_mesh: camera") -> Any:
    """The next diagnostics of a camera."""
    count = len(heard)
    assert graph.spin(lambda: len(heard) > count)
    return next(status for status in heard[-1].status if status.name == name)


@pytest.fixture
def diagnostics(graph):
    from diagnostic_msgs.msg import DiagnosticArray

    return graph.listen(DiagnosticArray, "/diagnostics")


@pytest.fixture
def log(graph):
    from rcl_interfaces.msg import Log

    from deformer_ros import qos

    everything = qos.latched()
    everything.depth = 100
    return graph.listen(Log, "/rosout", everything)


def test_everything_is_published_under_the_images_header(graph, body, diagnostics):
    from geometry_msgs.msg import TransformStamped
    from sensor_msgs.msg import Image
    from tf2_msgs.msg import TFMessage
    from visualization_msgs.msg import MarkerArray

    from deformer_ros.human_messages import topology_name
    from deformer_ros.msg import HumanMesh, HumanMeshArray

    activate(graph.mesh_node(diagnostics_period_s=0.3))
    camera = graph.camera()
    meshes, transforms = graph.listen(HumanMeshArray, MESHES), graph.listen(TFMessage, "/tf")
    markers, pictures = graph.listen(MarkerArray, MARKERS), graph.listen(Image, "/human_mesh/image_annotated")
    sent: dict[tuple[int, int], Any] = {}

    def send() -> None:
        stamp = camera.send().image.header.stamp
        sent[stamp.sec, stamp.nanosec] = stamp

    assert play(
        graph, send, lambda: len(meshes) > 3 and len(markers) > 1 and len(transforms) > 3 and len(pictures) > 1
    )
    shown = [message for message in markers if len(message.markers) > 1]
    stamped = [message.header for message in (*meshes, *pictures)]
    stamped += [marker.header for message in shown for marker in message.markers]
    for header in stamped:
        assert (header.stamp.sec, header.stamp.nanosec) in sent
        assert header.frame_id == "camera_optical_frame"
    humans = meshes[-1].humans
    assert [human.id for human in humans] == [1, 2]
    assert all(human.tracking_state == HumanMesh.TRACKING_TRACKED for human in humans)
    for human in humans:
        assert (human.topology, human.level) == (topology_name(body), "full")
        assert len(human.vertices) == body.levels["full"].vertices.size
        turns = np.reshape(human.joint_rotations, (-1, 4))
        assert len(turns) == len(body.rig.bone_names)
        np.testing.assert_allclose(np.linalg.norm(turns, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(human.intrinsics, camera.info().k)
    assert {marker.ns for marker in shown[-1].markers} == {"mesh", "skeleton", "label"}
    assert (pictures[-1].width, pictures[-1].height, pictures[-1].encoding) == (240, 340, "rgb8")
    assert isinstance(transforms[-1].transforms[0], TransformStamped)
    now = status(graph, diagnostics)
    values = {entry.key: entry.value for entry in now.values}
    assert now.message == "2 people" and values["people"] == "2" and values["camera"] == "calibrated"
    assert float(values["fps in"]) > 0 and float(values["fps out"]) > 0
    stages = {"wait", "decode", "detect", "reconstruct", "track", "publish", "total"}
    assert stages <= {key.split()[0] for key in values}


def test_the_transforms_form_one_tree_per_person(graph, body):
    from tf2_msgs.msg import TFMessage

    activate(graph.mesh_node())
    camera = graph.camera()
    heard = graph.listen(TFMessage, "/tf")
    assert play(graph, camera.send, lambda: heard)
    parents = {}
    for transform in heard[-1].transforms:
        assert transform.child_frame_id not in parents, "two parents"
        parents[transform.child_frame_id] = transform.header.frame_id
        rotation = transform.transform.rotation
        norm = np.linalg.norm([rotation.x, rotation.y, rotation.z, rotation.w])
        assert norm == pytest.approx(1, abs=1e-6)
    assert len(parents) == 2 * (len(body.rig.bone_names) + 1)
    assert parents["body_1"] == parents["body_2"] == "camera_optical_frame"
    for frame in parents:
        chain = [frame]
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
            assert len(chain) < 30, "a loop"
        assert chain[-1] == "camera_optical_frame" and chain[-2] == f"body_{frame.rsplit('_')[-1]}"


def test_the_topology_reaches_late_subscribers(graph, body):
    from deformer_ros import qos
    from deformer_ros.msg import MeshTopology

    node = activate(graph.mesh_node())
    graph.spin(lambda: False, 0.5)
    heard = graph.listen(MeshTopology, TOPOLOGY, qos.latched())
    assert graph.spin(lambda: heard)
    level = body.levels["full"]
    np.testing.assert_array_equal(np.reshape(heard[0].triangles, (-1, 3)), level.faces)
    np.testing.assert_array_equal(np.reshape(heard[0].template_vertices, (-1, 3)), level.vertices)
    assert tuple(heard[0].joint_names) == body.joint_names
    node.set_parameters([parameter("mesh_level", "coarse")])
    assert graph.spin(lambda: len(heard) > 1)
    assert heard[1].level == "coarse" and len(heard[1].triangles) == body.levels["coarse"].faces.size


def parameter(name: str, value: Any) -> Any:
    from rclpy.parameter import Parameter

    return Parameter(name, value=value)


def test_parameters_are_refused_out_of_range_with_a_reason(graph):
    from rcl_interfaces.srv import SetParameters

    node = graph.mesh_node()
    client = graph.robot.create_client(SetParameters, "/human_mesh/set_parameters")
    assert graph.spin(client.service_is_ready)

    def refusal(name: str, value: Any) -> str:
        message = parameter(name, value).to_parameter_msg()
        future = client.call_async(SetParameters.Request(parameters=[message]))
        assert graph.spin(future.done)
        (result,) = future.result().results
        return "" if result.successful else result.reason

    for name, value in (
        ("detection_threshold", 1.5),
        ("max_people", 0),
        ("smoothing", -0.1),
        ("marker_rate", 0.0),
        ("smoothing", "strong"),
        ("mesh_level", "finest"),
        ("marker_color", "#12"),
        ("autostart", False),
    ):
        assert refusal(name, value), name
    assert not refusal("device", "cpu")
    node.trigger_configure()
    assert "read at configure" in refusal("device", "auto")
    for name, value in (("smoothing", 1.0), ("max_people", 1), ("marker_color", "#ff8000"), ("lazy", False)):
        assert not refusal(name, value), name
    assert (node.settings.smoothing, node.settings.max_people, node.settings.lazy) == (1.0, 1, False)


def test_parameters_take_effect_while_it_runs(graph):
    from visualization_msgs.msg import MarkerArray

    from deformer_ros.msg import HumanMeshArray

    node = activate(graph.mesh_node(marker_rate=100.0))
    camera = graph.camera()
    meshes, markers = graph.listen(HumanMeshArray, MESHES), graph.listen(MarkerArray, MARKERS)
    assert play(graph, camera.send, lambda: meshes and len(meshes[-1].humans) == 2)
    node.set_parameters([parameter("max_people", 1), parameter("mesh_level", "coarse")])
    assert play(graph, camera.send, lambda: len(meshes[-1].humans) == 1 and meshes[-1].humans[0].level == "coarse")
    node.set_parameters([parameter("marker_color", "#ff8000"), parameter("marker_opacity", 0.5)])

    def is_orange() -> bool:
        color = markers[-1].markers[0].color
        return (color.r, round(color.g, 3), color.b, color.a) == (1.0, 0.502, 0.0, 0.5)

    assert play(graph, camera.send, is_orange)
    del markers[:]
    node.set_parameters([parameter("marker_rate", 2.0)])
    play(graph, camera.send, lambda: False, 0.3)
    del markers[:]
    play(graph, camera.send, lambda: False, 2.0)
    assert 2 <= len(markers) <= 6


def test_it_works_only_while_somebody_listens(graph, diagnostics):
    from deformer_ros.msg import HumanMeshArray

    node = activate(graph.mesh_node(diagnostics_period_s=0.2))
    camera = graph.camera()
    play(graph, camera.send, lambda: False, 0.5)
    assert camera.images.get_subscription_count() == 0
    assert status(graph, diagnostics).message == "idle: nobody listens"
    heard: list[Any] = []
    subscription = graph.robot.create_subscription(HumanMeshArray, MESHES, heard.append, 10)
    assert play(graph, camera.send, lambda: heard)
    assert camera.images.get_subscription_count() == 1
    graph.robot.destroy_subscription(subscription)
    assert graph.spin(lambda: camera.images.get_subscription_count() == 0)
    node.set_parameters([parameter("lazy", False)])
    assert graph.spin(lambda: camera.images.get_subscription_count() == 1)


def test_two_cameras_one_node(graph, diagnostics):
    from tf2_msgs.msg import TFMessage

    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node(camera_names=["front", "rear"], diagnostics_period_s=0.3))
    front, rear = graph.camera("front/", frame_id="front_frame"), graph.camera("rear/", frame_id="rear_frame")
    ahead = graph.listen(HumanMeshArray, "/human_mesh/front/meshes")
    behind = graph.listen(HumanMeshArray, "/human_mesh/rear/meshes")
    transforms = graph.listen(TFMessage, "/tf")
    assert play(graph, lambda: (front.send(), rear.send()), lambda: len(ahead) > 3 and len(behind) > 3)
    assert {message.header.frame_id for message in ahead} == {"front_frame"}
    assert {message.header.frame_id for message in behind} == {"rear_frame"}
    parents = {(t.child_frame_id, t.header.frame_id) for message in transforms for t in message.transforms}
    assert len({child for child, _ in parents}) == len(parents), "a frame with two parents"
    assert ("body_front_1", "front_frame") in parents and ("body_rear_1", "rear_frame") in parents
    assert status(graph, diagnostics, "human_mesh: camera front").message == "2 people"


def test_compressed_images(graph):
    import cv2
    from sensor_msgs.msg import CompressedImage

    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node(compressed=True))
    publisher = graph.robot.create_publisher(CompressedImage, "/image/compressed", 1)
    camera = graph.camera()
    heard = graph.listen(HumanMeshArray, MESHES)
    _, jpeg = cv2.imencode(".jpg", camera.picture)
    message = CompressedImage(header=camera.image().header, format="rgb8; jpeg compressed bgr8", data=jpeg.tobytes())
    assert play(graph, lambda: publisher.publish(message), lambda: heard)
    assert len(heard[-1].humans) == 2


def test_bad_images_are_reported_and_survived(graph, diagnostics, log):
    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node(diagnostics_period_s=0.2, image_timeout_s=100.0))
    camera = graph.camera()
    heard = graph.listen(HumanMeshArray, MESHES)
    assert play(graph, camera.send, lambda: heard)
    for fields, words in (
        ({"encoding": "rgb12"}, "encoding 'rgb12' cannot be converted"),
        ({"step": 3}, "step is 3 bytes"),
        ({"height": 0}, "240x0 pixels"),
        ({"data": b"12"}, "holds 2 bytes"),
    ):
        bad = camera.image()
        for name, value in fields.items():
            setattr(bad, name, value)

        def is_reported(words: str = words) -> bool:
            last = diagnostics[-1].status if diagnostics else []
            found = [s for s in last if s.name == "human_mesh: camera"]
            return any(words in s.message and s.level == b"\x02" for s in found)

        assert play(graph, lambda bad=bad: camera.images.publish(bad), is_reported), words
    count = len(heard)
    assert play(graph, camera.send, lambda: len(heard) > count + 2)
    assert status(graph, diagnostics).level == b"\x00"
    lines = [line.msg for line in log if line.name == "human_mesh" and line.msg.startswith("/image: ")]
    assert lines and all("\n" not in line for line in lines)
    assert len(lines) <= 2, "not throttled"


def test_headers_that_change_are_reported(graph, log):
    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node())
    camera = graph.camera()
    heard = graph.listen(HumanMeshArray, MESHES)
    assert play(graph, camera.send, lambda: heard)
    camera.frame_id = "elsewhere"
    assert play(graph, camera.send, lambda: heard[-1].header.frame_id == "elsewhere")
    assert play(graph, lambda: camera.send(5.0), lambda: any("jumped back" in line.msg for line in log))
    assert any("from 'camera_optical_frame' to 'elsewhere'" in line.msg for line in log)
    assert play(graph, lambda: camera.send(6.0), lambda: heard[-1].header.stamp.sec == 6)


def test_a_camera_without_calibration(graph, diagnostics, log):
    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node(diagnostics_period_s=0.2))
    camera = graph.camera()
    heard = graph.listen(HumanMeshArray, MESHES)
    assert play(graph, lambda: camera.images.publish(camera.image()), lambda: heard)
    now = status(graph, diagnostics)
    assert now.level == b"\x01" and "55 degrees is assumed" in now.message
    assert graph.spin(lambda: any("no CameraInfo has come" in line.msg for line in log))
    assert play(graph, camera.send, lambda: "degrees" not in status(graph, diagnostics).message)


def test_a_camera_that_dies(graph, diagnostics):
    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node(diagnostics_period_s=0.2, image_timeout_s=0.5))
    camera = graph.camera()
    heard = graph.listen(HumanMeshArray, MESHES)
    assert play(graph, camera.send, lambda: heard)
    graph.robot.destroy_publisher(camera.images)
    assert graph.spin(lambda: status(graph, diagnostics).level == b"\x02")
    assert "no image for" in status(graph, diagnostics).message
    assert graph.spin(lambda: "which has no publisher" in status(graph, diagnostics).message)
    again = graph.camera()
    assert play(graph, again.send, lambda: status(graph, diagnostics).level == b"\x00")


def test_a_mismatch_of_our_wishes_is_said_in_words(graph, diagnostics, log):
    from deformer_ros.msg import HumanMeshArray

    arguments = ("-p", "qos_overrides./image.subscription.reliability:=reliable")
    node = activate(graph.mesh_node(arguments, diagnostics_period_s=0.2, lazy=False))
    graph.camera()
    assert graph.spin(lambda: "QoS of /image" in status(graph, diagnostics).message)
    sentence = status(graph, diagnostics).message
    assert "this node's subscription has reliable, the publisher has best_effort (robot)" in sentence
    assert "qos_overrides./image.subscription.reliability" in sentence
    assert node.settings.lazy is False

    from deformer_ros import qos

    graph.listen(HumanMeshArray, MESHES, qos.latched())
    words = "QoS of /human_mesh/meshes does not match in durability: this node's publisher has volatile"
    assert graph.spin(lambda: any(words in line.msg for line in log))


def test_neither_memory_nor_age_grows(graph):
    """At 30 images per second, for DEFORMER_SOAK seconds, 8 by default."""
    from deformer_ros.msg import HumanMeshArray

    activate(graph.mesh_node(mesh_level="full"))
    camera = graph.camera()
    ages: list[float] = []

    def on_mesh(message: Any) -> None:
        stamp = message.header.stamp
        ages.append(graph.robot.get_clock().now().nanoseconds * 1e-9 - stamp.sec - stamp.nanosec * 1e-9)

    graph.robot.create_subscription(HumanMeshArray, MESHES, on_mesh, 10)
    assert play(graph, camera.send, lambda: len(ages) > 10, rate=30)
    del ages[:]
    play(graph, camera.send, lambda: False, 2, rate=30)
    first, before = float(np.median(ages)), resident()
    del ages[:]
    duration = float(os.environ.get("DEFORMER_SOAK", "8"))
    play(graph, camera.send, lambda: False, duration, rate=30)
    last, grown = float(np.median(ages[-len(ages) // 4 :])), resident() - before
    print(f"{duration:.0f} s, {len(ages)} meshes: age {first:.3f} s, then {last:.3f} s; {grown / 1e6:+.1f} MB")
    assert len(ages) > duration
    assert last < 2 * first + 0.2
    assert grown < 20e6


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
