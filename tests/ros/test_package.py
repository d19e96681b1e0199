"""The package in one piece: what is declared, built and installed is what the sources use."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from deformer_ros.parameters import DEFAULTS, TABLE

ROOT = Path(__file__).parents[2]
ROS_FREE = "batch runtime parameters pipeline diagnostics worker images camera_info body_frames markers cdr"
PIP_ONLY = {"cv2", "numpy", "torch", "deformer_core", "deformer_ros", "rosbags", "tqdm", "cv_bridge", "scipy", "yaml"}


def imported_packages() -> set[str]:
    """Top-level packages that the ROS modules, scripts and the launch file import."""
    files = [*ROOT.glob("deformer_ros/*.py"), *ROOT.glob("scripts/*"), *ROOT.glob("launch/*.py")]
    found = set()
    for item in (item for file in files for item in ast.walk(ast.parse(file.read_text()))):
        if isinstance(item, ast.Import):
            found |= {alias.name.split(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and not item.level:
            found.add((item.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - PIP_ONLY


def test_every_ros_package_that_is_imported_is_declared():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    assert package.attrib["format"] == "3" and package.findtext("name") == "deformer_ros"
    declared = {entry.text for tag in ("depend", "exec_depend") for entry in package.findall(tag)}
    optional = {"ament_index_python"}  # comes with launch
    assert imported_packages() - optional <= declared
    assert package.findtext("member_of_group") == "rosidl_interface_packages"
    assert package.findtext("export/build_type") == "ament_cmake"


def test_cmake_names_every_message_and_script():
    lists = (ROOT / "CMakeLists.txt").read_text()
    for file in ROOT.glob("msg/*.msg"):
        assert f"msg/{file.name}" in lists
    for script in ROOT.glob("scripts/*"):
        assert f"scripts/{script.name}" in lists
        assert os.access(script, os.X_OK) and script.read_text().startswith("#!/usr/bin/env python3\n")


def test_the_parameter_file_holds_the_defaults():
    (entry,) = yaml.safe_load((ROOT / "config" / "human_mesh.yaml").read_text()).values()
    given = entry["ros__parameters"]
    assert given == {name: getattr(DEFAULTS, name) for name in given}
    assert set(TABLE) - set(given) == {"autostart", "camera_names"}
    assert all(type(value) is type(getattr(DEFAULTS, name)) for name, value in given.items())


def test_rviz_looks_where_the_node_publishes():
    displays = yaml.safe_load((ROOT / "rviz" / "human_mesh.rviz").read_text())["Visualization Manager"]
    topics = {display["Topic"]["Value"] for display in displays["Displays"] if "Topic" in display}
    assert topics == {"/human_mesh/markers", "/human_mesh/image_annotated"}
    assert displays["Global Options"]["Fixed Frame"].endswith("_optical_frame")


def test_the_core_and_the_bare_modules_need_no_ros():
    modules = [f"deformer_ros.{name}" for name in ROS_FREE.split()[2:]]
    code = f"""
import sys
for name in ("rclpy", "std_msgs", "sensor_msgs", "visualization_msgs", "rosbags"):
    sys.modules[name] = None
import importlib
for name in {["deformer_core.cli", "deformer_core.runtime.batch", *modules]!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def built_hash(name: str) -> str:
    """Type hash of a message as generated in the sourced workspace. name: package/msg/Name."""
    from ament_index_python import get_package_share_directory

    package, _, message = name.split("/")
    description = json.loads((Path(get_package_share_directory(package)) / "msg" / f"{message}.json").read_text())
    return next(entry["hash_string"] for entry in description["type_hashes"] if entry["type_name"] == name)


def test_messages_are_what_rosbags_makes_of_their_files(ros):
    """Two implementations of the type hash agree: the generator's and rosbags'."""
    rosbags = pytest.importorskip("rosbags.typesys")
    store = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
    for file in ROOT.glob("msg/*.msg"):
        store.register(rosbags.get_types_from_msg(file.read_text(), f"deformer_ros/msg/{file.stem}"))
    for file in ROOT.glob("msg/*.msg"):
        name = f"deformer_ros/msg/{file.stem}"
        assert store.hash_rihs01(name) == built_hash(name), f"{file.name} has changed since: make ros, or colcon build"


def test_the_stand_in_for_tf2_msgs_is_the_real_message(ros):
    rosbags = pytest.importorskip("rosbags.typesys")
    pytest.importorskip("tf2_msgs.msg")
    store = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
    assert store.hash_rihs01("tf2_msgs/msg/TFMessage") == built_hash("tf2_msgs/msg/TFMessage")


def test_what_is_installed_is_complete(ros):
    from ament_index_python import get_package_prefix

    prefix = Path(get_package_prefix("deformer_ros"))
    share = prefix / "share" / "deformer_ros"
    for folder in ("launch", "config", "rviz"):
        assert {file.name for file in (ROOT / folder).iterdir()} <= {file.name for file in (share / folder).iterdir()}
    for script in ROOT.glob("scripts/*"):
        assert os.access(prefix / "lib" / "deformer_ros" / script.name, os.X_OK)
    (modules,) = prefix.glob("lib/python*/site-packages/deformer_ros")
    assert {file.name for file in ROOT.glob("deformer_ros/*.py")} <= {file.name for file in modules.iterdir()}
    (core,) = prefix.glob("lib/python*/site-packages/deformer_core")
    assert (core / "weights" / "nanodet_g_416.onnx").exists()


def test_the_readme_tells_of_every_parameter_and_argument():
    text = (ROOT / "deformer_ros" / "README.md").read_text()
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 6}
    assert set(rows) == set(TABLE)
    for name, row in rows.items():
        default = getattr(DEFAULTS, name)
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert f"| `{shown}` |" in row and TABLE[name].metadata["text"] in row and TABLE[name].metadata["when"] in row
    launch = (ROOT / "launch" / "human_mesh.launch.py").read_text()
    (table,) = [item.value for item in ast.parse(launch).body if isinstance(item, ast.Assign)
                and item.targets[0].id == "ARGUMENTS"]  # fmt: skip
    assert all(f"`{row.elts[0].value}`" in text or f"{row.elts[0].value}:=" in text for row in table.elts)
