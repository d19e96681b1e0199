"""Bag to bag: everything in it comes out again, and with it what the estimator and the tracker say."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'deformer[ros]'")
import recorded
from recorded import BOXES, IMAGE, START, STEP, Stop, of, original, read, scene, stop_after, topics, walkers, write_bag
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from deformer_core.cli import main
from deformer_core.errors import InputError
from deformer_core.runtime.batch import BatchEstimator, View
from deformer_core.runtime.smoothing import Smoother
from deformer_core.runtime.tracker import Tracker
from deformer_ros.bag import DEFAULTS, process_bag
from deformer_ros.camera_info import effective_intrinsics
from deformer_ros.human_messages import topology_name

MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3
MESHES, MARKERS, TOPOLOGY = "/human_mesh/meshes", "/human_mesh/markers", "/human_mesh/topology"
ARRAY = "deformer_ros/msg/HumanMeshArray"
COUNT = 7
SETTINGS = replace(DEFAULTS, mesh_level="coarse", marker_level="coarse")


@pytest.fixture
def pictures(detector):
    detector.boxes = BOXES
    return walkers(COUNT)


@pytest.fixture(params=[MCAP, SQLITE], ids=["mcap", "sqlite3"])
def bag(request, tmp_path, pictures, rng):
    return write_bag(tmp_path / "in", request.param, scene(pictures, rng))


@pytest.fixture
def mcap(tmp_path, pictures, rng):
    return write_bag(tmp_path / "in", MCAP, scene(pictures, rng))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def process(load, out, checkpoint):
    """process_bag into `out` with the tests' model."""

    def call(bag: Path, images: tuple[str, ...] = (IMAGE,), **options: Any) -> Any:
        settings = replace(options.pop("settings", SETTINGS), checkpoint=str(checkpoint))
        return process_bag(bag, **{"target": out, "images": images, "load": load, **options}, settings=settings)

    return call


def test_all_that_goes_in_comes_out(bag, out, process):
    summary = process(bag, batch=3)
    assert (summary.images, summary.unusable, summary.images_with_people) == (COUNT, 0, COUNT)
    before, after = read(bag), read(out)
    assert original(after) == before
    known, written = topics(bag), topics(out)
    assert {topic: written[topic] for topic in known} == known
    assert {path.suffix for path in out.iterdir()} == {path.suffix for path in bag.iterdir()}
    assert not list(out.parent.glob("*.partial"))
    process(recorded.storage_file(bag), overwrite=True)
    assert original(read(out)) == before


def test_every_image_is_followed_by_its_messages(bag, out, process):
    process(bag, batch=4)
    messages = read(out)
    meshes = of(messages, MESHES)
    assert len(meshes) == COUNT
    for index, message in enumerate(messages):
        if message.topic == IMAGE:
            sent = message.decoded("sensor_msgs/msg/Image").header
            follows = messages[index + 1]
            got = follows.decoded(ARRAY)
            assert (follows.topic, follows.time) == (MESHES, message.time)
            for stamped in (got, *got.humans):
                assert stamped.header == sent
    # At most 15 a second of 30.
    assert [m.time for m in of(messages, MARKERS)] == [START + 7 + index * STEP for index in range(0, COUNT, 2)]


def test_the_numbers_are_the_estimators_and_the_trackers(mcap, out, process, pictures, engine, body, detector):
    process(mcap, batch=1)
    estimator, tracker, smoother = BatchEstimator(engine, body), Tracker(), Smoother(SETTINGS.smoothing)
    intrinsics = effective_intrinsics(recorded.camera_info(0), 320, 240, False, 55.0).intrinsics
    for index, (picture, message) in enumerate(zip(pictures, of(read(out), MESHES))):
        view = View(picture, intrinsics, detector.boxes, detector.scores, detected=True)
        stamp = (START + index * STEP) * 1e-9
        (people,) = estimator([view], ("coarse", "middle"))
        tracks = smoother(tracker(people, stamp), stamp)
        humans = message.decoded(ARRAY).humans
        assert [(h.id, h.tracking_state) for h in humans] == [(t.id, t.state) for t in tracks]
        for human, person in zip(humans, (track.person for track in tracks)):
            n = len(body.levels["coarse"].vertices)
            for got, expected in (
                (human.vertices, person.vertices[:n]),
                (human.joints, person.joints),
                (human.translation, person.translation),
                (human.box, person.box),
                (human.intrinsics, person.intrinsics),
            ):
                # Stamps in seconds are rounded one way here, another there: smoothing turns that into micrometres.
                np.testing.assert_allclose(got, expected.ravel(), atol=1e-5)
            assert (human.topology, human.level) == (topology_name(body), "coarse")


def test_the_numbers_are_the_live_nodes(graph, mcap, out, process, pictures):
    """The same messages through Fast DDS and the node, one by one, to the last bit."""
    from rclpy.qos import qos_profile_sensor_data
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import CameraInfo, Image

    from deformer_ros.msg import HumanMeshArray

    process(mcap, batch=1)
    node = graph.mesh_node(mesh_level="coarse", marker_level="coarse", smoothing=SETTINGS.smoothing)
    node.trigger_configure()
    node.trigger_activate()
    images = graph.robot.create_publisher(Image, "/image", qos_profile_sensor_data)
    infos = graph.robot.create_publisher(CameraInfo, "/camera_info", qos_profile_sensor_data)
    heard = graph.listen(HumanMeshArray, MESHES)
    assert graph.spin(lambda: images.get_subscription_count() and infos.get_subscription_count())
    infos.publish(deserialize_message(of(read(mcap), recorded.INFO)[0].raw, CameraInfo))
    graph.spin(lambda: False, 0.3)
    for index, message in enumerate(of(read(mcap), IMAGE)):
        images.publish(deserialize_message(message.raw, Image))
        assert graph.spin(lambda count=index + 1: len(heard) == count)
    for message, live in zip(of(read(out), MESHES), heard, strict=True):
        written = message.decoded(ARRAY)
        assert written.header.stamp.nanosec == live.header.stamp.nanosec and len(live.humans) == len(written.humans) > 0
        for human, other in zip(written.humans, live.humans):
            assert human.id == other.id and human.confidence == other.confidence
            for field in ("vertices", "joints", "joint_rotations", "translation", "box", "intrinsics"):
                np.testing.assert_array_equal(getattr(human, field), getattr(other, field), field)


def test_batches_change_nothing(mcap, tmp_path, process):
    ways = [tmp_path / "one", tmp_path / "many"]
    for way, batch in zip(ways, (1, 5)):
        process(mcap, target=way, batch=batch)
    one, many = (of(read(way), MESHES) for way in ways)
    for first, second in zip(one, many):
        for human, other in zip(first.decoded(ARRAY).humans, second.decoded(ARRAY).humans):
            np.testing.assert_allclose(human.vertices, other.vertices, atol=1e-4)
            np.testing.assert_allclose(human.translation, other.translation, atol=1e-4)


def test_the_topology_comes_first_and_is_latched(bag, out, process, body):
    process(bag)
    first = read(out)[0]
    sent = first.decoded("deformer_ros/msg/MeshTopology")
    assert first.topic == TOPOLOGY and first.time == read(bag)[0].time
    np.testing.assert_array_equal(sent.triangles, body.levels["coarse"].faces.ravel())
    assert sent.joint_names == list(body.joint_names) and sent.name == topology_name(body)
    (qos,) = topics(out)[TOPOLOGY][3].offered_qos_profiles
    assert (qos.durability.name, qos.reliability.name, qos.depth) == ("TRANSIENT_LOCAL", "RELIABLE", 1)


def test_transforms_and_markers(mcap, out, process, body):
    process(mcap)
    messages = read(out)
    added = of(messages, "/tf")[1:-1]
    assert len(added) == COUNT
    sent = added[-1].decoded("tf2_msgs/msg/TFMessage").transforms
    assert {"body_1", "body_2"} <= {t.child_frame_id for t in sent if t.header.frame_id == "camera_optical_frame"}
    turns = [t.transform.rotation for t in sent]
    np.testing.assert_allclose([np.hypot(np.hypot(q.x, q.y), np.hypot(q.z, q.w)) for q in turns], 1, atol=1e-6)
    markers = of(messages, MARKERS)[-1].decoded("visualization_msgs/msg/MarkerArray").markers
    assert [marker.ns for marker in markers] == ["mesh", "skeleton", "label"] * 2
    humans = of(messages, MESHES)[-1].decoded(ARRAY).humans
    corners = (humans[0].vertices.reshape(-1, 3) + humans[0].translation)[body.levels["coarse"].faces.ravel()]
    np.testing.assert_allclose([(p.x, p.y, p.z) for p in markers[0].points], corners, atol=1e-6)


def test_the_bytes_are_those_of_ros(ros, mcap, out, process):
    """rclpy reads every message to the same values, and a bag's types have the hashes that ROS gives them."""
    from rclpy.serialization import deserialize_message, serialize_message

    process(mcap)
    written = topics(out)
    for topic in (MESHES, MARKERS, TOPOLOGY, "/tf"):
        name, _, digest, _ = written[topic]
        package, _, kind = name.split("/")
        cls = getattr(import_module(f"{package}.msg"), kind)
        prefix = Path(import_module(f"{package}.msg").__file__).parents[5]
        described = prefix / "share" / package / "msg" / f"{kind}.json"
        assert digest == json.loads(described.read_text())["type_hashes"][0]["hash_string"]
        for message in of(read(out), topic):
            again = serialize_message(deserialize_message(message.raw, cls))
            assert recorded.TYPES.reads_as(again, message.decoded(name))


def test_several_cameras_share_the_batches(tmp_path, pictures, out, process):
    messages = []
    for index, picture in enumerate(pictures[:3]):
        stamp = START + index * STEP
        for name in ("front", "rear"):
            messages.append((f"/{name}/image_raw/compressed", stamp, recorded.jpeg(picture, stamp)))
            messages.append((f"/{name}/camera_info", stamp, recorded.camera_info(stamp, 200.0)))
    bag = write_bag(tmp_path / "in", MCAP, messages)
    process(bag, images=("/front/image_raw/compressed", "rear/image_raw/compressed"))
    after = read(out)
    for name in ("front", "rear"):
        sent = [m.decoded(ARRAY) for m in of(after, f"/human_mesh/{name}/meshes")]
        assert [[human.id for human in array.humans] for array in sent] == [[1, 2]] * 3
        # The first image comes before the first calibration.
        assert [array.humans[0].intrinsics[0] for array in sent] == [200.0] * 3
    frames = [t.child_frame_id for m in of(after, "/tf") for t in m.decoded("tf2_msgs/msg/TFMessage").transforms]
    assert {"body_front_1", "body_rear_2"} <= set(frames)


def test_damaged_images_go_through_and_hurt_no_other(tmp_path, pictures, out, process):
    messages = [("/cam/image", START + i, recorded.image(p, START + i)) for i, p in enumerate(pictures)]
    messages[2][2].step = 3
    messages[4][2].encoding = "rgb12"
    bag = write_bag(tmp_path / "in", SQLITE, messages)
    told: list[str] = []
    summary = process(bag, images=("/cam/image",), report=told.append)
    assert (summary.images, summary.unusable) == (COUNT, 2)
    after = read(out)
    assert of(after, "/cam/image") == read(bag)
    assert [m.time - START for m in of(after, MESHES)] == [0, 1, 3, 5, 6]
    assert sum("step is 3 bytes" in line for line in told) == 1
    assert sum("55 degrees is assumed" in line for line in told) == 1


def test_compressed_bags_stay_compressed(tmp_path, pictures, rng, out, process):
    for number, (storage, mode) in enumerate(((MCAP, "STORAGE"), (SQLITE, "MESSAGE"), (SQLITE, "FILE"))):
        messages = scene(pictures[:2], rng)
        bag = write_bag(tmp_path / f"in{number}", storage, messages, CompressionMode[mode])
        process(bag, overwrite=True)
        assert original(read(out)) == read(bag)
        plain = sum(len(message.raw) for message in read(out))
        assert sum(path.stat().st_size for path in out.iterdir()) < 0.8 * plain


def test_nothing_is_lost_when_it_stops(bag, tmp_path, process, engine, monkeypatch, seed):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    process(bag, target=whole, batch=2)
    stop_at = random.Random(seed).randrange(1, 4)
    calls = stop_after(stop_at + 1, engine, monkeypatch)  # the first is the warm-up
    with pytest.raises(Stop):
        process(bag, target=resumed, batch=2)
    assert not resumed.exists()
    told: list[str] = []
    process(bag, target=resumed, batch=2, report=told.append)
    # Two warm-ups, and the batch it stopped in twice.
    assert len(calls) == 2 + (COUNT + 1) // 2 + 1
    assert any(f"after {stop_at} batches" in line for line in told)
    assert read(resumed) == read(whole) and topics(resumed) == topics(whole)


def test_a_killed_command_goes_on(tmp_path, checkpoint, seed, rng):
    """SIGKILL at a random time while it reconstructs; the same command then makes the bag of an undisturbed one."""
    bag = write_bag(tmp_path / "in", MCAP, scene(walkers(10), rng))
    options = ["--image", IMAGE, "--model", str(checkpoint), "--engine", "torch", "--threads", "1", "--batch", "1"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done, delay = random.Random(seed).randrange(1, 8), seed % 100 / 1000
    process = subprocess.Popen(
        [sys.executable, "-m", "deformer_core", "bag", str(bag), str(resumed), *options],
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    people = tmp_path / "resumed.partial" / "people"
    end = time.monotonic() + 120
    while len(list(people.glob("*.npz"))) < done and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(list(people.glob("*.npz"))) >= done and not resumed.exists()
    for target in (whole, resumed):
        assert main(["bag", str(bag), str(target), *options]) == 0
    assert read(resumed) == read(whole) and topics(resumed) == topics(whole)
    assert any(message.decoded(ARRAY).humans for message in of(read(whole), MESHES))


def test_what_another_run_left_is_not_mixed_in(mcap, out, process, engine, monkeypatch):
    stop_after(2, engine, monkeypatch)
    with pytest.raises(Stop):
        process(mcap, batch=2)
    monkeypatch.undo()
    with pytest.raises(InputError, match="the beginning of another run.*--overwrite"):
        process(mcap, batch=3)
    process(mcap, batch=3, overwrite=True)
    assert len(of(read(out), MESHES)) == COUNT


def test_an_engine_that_fails_is_a_sentence(mcap, out, process, engine, monkeypatch):
    stop_after(2, engine, monkeypatch, InputError("the GPU has no memory even for one person"))
    with pytest.raises(InputError, match="out .the GPU has no memory.* is kept in .*out.partial"):
        process(mcap, batch=2)
    assert process(mcap, batch=2).images_with_people == COUNT


def test_a_full_disk_loses_nothing(bag, out, process, seed):
    largest = sum(path.stat().st_size for path in bag.iterdir())
    limit = random.Random(seed).randrange(200_000, largest)
    with recorded.smallest_files(limit), pytest.raises(InputError, match="cannot make the bag .* goes on from there"):
        process(bag, batch=2)
    assert not out.exists()
    process(bag, batch=2)
    assert original(read(out)) == read(bag)


def test_an_output_that_exists_is_kept_unless_told(mcap, out, process):
    process(mcap)
    before = read(out)
    with pytest.raises(InputError, match="out exists already: give another name, or --overwrite"):
        process(mcap, batch=3)
    assert read(out) == before
    process(mcap, batch=3, overwrite=True)
    assert not list(out.parent.glob("*.partial"))


def test_a_bag_cut_short_is_a_sentence(bag, out, process, seed):
    file = recorded.storage_file(bag)
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(random.Random(seed).randrange(size // 20, size * 19 // 20))
    with pytest.raises(InputError, match="the bag .* is damaged .*reindex") as error:
        process(bag)
    assert "\n" not in str(error.value)
    assert not out.exists() and not list(out.parent.glob("*.partial"))


def test_bytes_changed_somewhere_are_a_sentence_or_harmless(bag, out, process, rng):
    file = recorded.storage_file(bag)
    data = bytearray(file.read_bytes())
    for place in rng.integers(0, len(data), 40):
        data[place] ^= int(rng.integers(1, 256))
    file.write_bytes(data)
    try:
        process(bag)
    except InputError as error:
        assert not out.exists(), error
    else:
        assert len(of(read(out), IMAGE)) == COUNT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"images": ("/rear",)}, "has no topic /rear: its image topics are /camera/image_raw"),
        ({"images": ("/gripper",)}, "is of type robot_msgs/msg/Gripper: its image topics are /camera/image_raw"),
        ({"images": (IMAGE, IMAGE)}, "twice"),
        ({"infos": ("/rear/info",)}, "has no topic /rear/info: its CameraInfo topics are /camera/camera_info"),
        ({"infos": ("/a", "/b")}, "1 --image and 2 --camera-info"),
        ({"batch": 0}, "--batch must be at least 1"),
        ({"settings": replace(SETTINGS, smoothing=2.0)}, "--smoothing between 0 and 1"),
        ({"settings": replace(SETTINGS, mesh_level="finest")}, "no mesh_level 'finest'"),
    ],
)
def test_options_that_cannot_be_are_a_sentence(mcap, out, process, options, words):
    with pytest.raises(InputError, match=words) as error:
        process(mcap, **options)
    assert "\n" not in str(error.value) and not list(out.parent.glob("out*"))


def test_more_that_cannot_be(tmp_path, mcap, out, process, pictures, capsys, monkeypatch):
    with pytest.raises(InputError, match="there is no such file or folder"):
        process(tmp_path / "nothing")
    with pytest.raises(InputError, match="is or lies in"):
        process(mcap, target=mcap, overwrite=True)
    process(mcap)
    with pytest.raises(InputError, match="holds /human_mesh/markers, /human_mesh/meshes, /human_mesh/topology already"):
        process(out, target=tmp_path / "again")
    depth = write_bag(tmp_path / "depth", MCAP, [(IMAGE, 1, recorded.image(pictures[0], 1, encoding="32FC1"))])
    with pytest.raises(InputError, match="none of the 1 images .* is of depths"):
        process(depth, target=tmp_path / "again")
    assert main(["bag", str(tmp_path / "nothing"), str(tmp_path / "again"), "--image", IMAGE]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (mcap / "metadata.yaml").unlink()
    with pytest.raises(InputError, match="no metadata.yaml.*ros2 bag reindex"):
        process(mcap, target=tmp_path / "again")
    monkeypatch.setitem(sys.modules, "rosbags.interfaces", None)
    for name in [name for name in sys.modules if name.startswith("deformer_ros.bag")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["bag", str(mcap), str(tmp_path / "again"), "--image", IMAGE]) == 2
    assert "pip install 'deformer[ros]'" in capsys.readouterr().err
