"""The launch file: its arguments, and what they start. Run with the real launch where there is one."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch" / "human_mesh.launch.py"
ARGUMENTS = (
    "image camera_info compressed camera_names params_file engine device rviz record namespace use_sim_time log_level "
    "autostart"
).split()


@pytest.fixture
def launch_file():
    """The launch file's functions and its description, under the real launch."""
    reason = "launch and launch_ros are not on PyPI: source a ROS install"
    pytest.importorskip("launch", reason=reason)
    pytest.importorskip("launch_ros.actions", reason=reason)
    pytest.importorskip("ament_index_python", reason=reason)
    try:
        return SimpleNamespace(**runpy.run_path(str(FILE)))
    except LookupError:
        pytest.skip("this package is not installed in the sourced workspace: colcon build")


def start(launch_file, **given):
    """Entities that a launch with these arguments starts, and the context."""
    from launch import LaunchContext

    context = LaunchContext()
    for argument in launch_file.generate_launch_description().get_launch_arguments():
        context.launch_configurations[argument.name] = given.get(argument.name, argument.default_value[0].text)
    return launch_file.start(context), context


def command_of(node, context):
    """What a node's process is called with, in words, and its parameters."""
    import yaml

    node._perform_substitutions(context)
    context.extend_locals({"ros_specific_arguments": {"name": "", "ns": ""}})
    words = [part.perform(context) for words in node.cmd for part in words]
    parameters = {}
    for name in words:
        if name.endswith((".yaml", ".yml")) or "launch_params" in name:
            for entry in yaml.full_load(Path(name).read_text()).values():
                parameters |= entry["ros__parameters"]
    return words, parameters


def test_only_the_launch_file_imports_launch():
    for file in (*ROOT.glob("deformer_*/**/*.py"), *ROOT.glob("scripts/*"), *ROOT.glob("tools/**/*.py")):
        for item in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else []
            names += [item.module or ""] if isinstance(item, ast.ImportFrom) and not item.level else []
            assert not {name.split(".")[0] for name in names} & {"launch", "launch_ros"}, file


def test_every_argument_is_declared_with_words():
    tree = ast.parse(FILE.read_text())
    tables = [item.value for item in tree.body if isinstance(item, ast.Assign) and item.targets[0].id == "ARGUMENTS"]
    rows = {row.elts[0].value: row.elts[2].value for row in tables[0].elts}
    assert set(ARGUMENTS) <= set(rows)
    assert all(text.endswith(".") for text in rows.values())


def test_arguments_and_choices(launch_file):
    declared = {a.name: a for a in launch_file.generate_launch_description().get_launch_arguments()}
    assert set(ARGUMENTS) <= set(declared)
    assert all(argument.description for argument in declared.values())
    assert declared["engine"].choices == ["", "auto", "onnxruntime", "torch"]


def test_one_camera(launch_file):
    (node,), context = start(launch_file, image="/cam/color/image_raw", engine="torch", namespace="robot")
    words, parameters = command_of(node, context)
    assert words[0].endswith("lib/deformer_ros/human_mesh_node")
    assert {"image:=/cam/color/image_raw", "camera_info:=/cam/color/camera_info"} <= set(words)
    assert node.node_name == "/robot/human_mesh"
    assert "robot.human_mesh:=info" in words
    assert (parameters["engine"], parameters["autostart"], parameters["use_sim_time"]) == ("torch", True, False)
    assert parameters["checkpoint"] == "small" and "camera_names" not in parameters


def test_several_compressed_cameras(launch_file):
    given = {"camera_names": "front, rear", "image": "/{camera}/image_raw", "compressed": "true"}
    (node,), context = start(launch_file, **given)
    words, parameters = command_of(node, context)
    for name in ("front", "rear"):
        assert f"{name}/image/compressed:=/{name}/image_raw/compressed" in words
        assert f"{name}/camera_info:=/{name}/camera_info" in words
    assert list(parameters["camera_names"]) == ["front", "rear"] and parameters["compressed"] is True
    with pytest.raises(RuntimeError, match="must contain {camera}"):
        start(launch_file, camera_names="front,rear", image="/image_raw")


def test_a_bag_is_recorded(launch_file):
    (_, recorder), context = start(launch_file, record="people", namespace="robot", image="/cam/image_raw")
    words = [part.perform(context) for words in recorder.cmd for part in words]
    assert words[:5] == ["ros2", "bag", "record", "-o", "people"]
    assert {"/robot/human_mesh/meshes", "/robot/human_mesh/topology", "/tf", "/cam/image_raw"} <= set(words)


def test_rviz_looks_at_the_first_camera(launch_file):
    (_, rviz), _ = start(
        launch_file, rviz="true", namespace="robot", camera_names="front,rear", image="/{camera}/image_raw"
    )
    assert rviz.node_package == "rviz2"
    remaps = [tuple("".join(part.text for part in side) for side in pair) for pair in rviz._Node__remappings]
    assert ("/human_mesh/markers", "/robot/human_mesh/front/markers") in remaps
