"""The human mesh node, and if asked for RViz and a bag: `ros2 launch deformer_ros human_mesh.launch.py --show-args`."""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch_ros.actions import LifecycleNode, Node

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

SHARE = Path(get_package_share_directory("deformer_ros"))
NODE = "human_mesh"
BOOL = ["true", "false"]

ARGUMENTS = (
    ("image", "/camera/image_raw", "Image topic, without /compressed; '{camera}' in it is the camera's name.", None),
    ("camera_info", "", "CameraInfo topic, '{camera}' as in image; empty: camera_info beside the image.", None),
    ("compressed", "false", "Subscribe to <image>/compressed.", BOOL),
    ("camera_names", "", "Several cameras for one model, as front,rear; empty: one camera.", None),
    ("params_file", str(SHARE / "config" / "human_mesh.yaml"), "Parameters of the node.", None),
    ("checkpoint", "", "Weights: a shipped name or a path; empty: as params_file says.", None),
    ("engine", "", "What runs the model; empty: as params_file says.", ["", "auto", "onnxruntime", "torch"]),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as params_file says.", None),
    ("rviz", "false", "Open RViz on the (first) camera's people.", BOOL),
    ("fixed_frame", "", "RViz's fixed frame, the camera's optical frame; empty: as the RViz file says.", None),
    ("record", "", "Folder of a bag to record into; empty: no bag.", None),
    ("namespace", "", "Namespace of the node.", None),
    ("use_sim_time", "false", "Take the time from /clock.", BOOL),
    ("log_level", "info", "Least severity that the node logs.", ["debug", "info", "warn", "error", "fatal"]),
    ("autostart", "true", "Configure and activate the node; false leaves that to `ros2 lifecycle`.", BOOL),
)


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; what they say is looked at when the launch begins."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
        for name, default, text, choices in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node, RViz and the recorder, as the arguments say."""
    given = {name: context.launch_configurations[name] for name, *_ in ARGUMENTS}
    names = [name.strip() for name in given["camera_names"].split(",") if name.strip()]
    if len(names) > 1 and "{camera}" not in given["image"]:
        raise RuntimeError("with several camera_names, image must contain {camera}, as in image:=/{camera}/image_raw")
    topics = {name: camera_topics(given, name) for name in names or [""]}
    home = "/".join(["", *filter(None, (given["namespace"].strip("/"), NODE))])
    actions: list[LaunchDescriptionEntity] = [mesh_node(given, names, topics)]
    if given["rviz"] == "true":
        actions.append(rviz(given, f"{home}/{names[0]}" if names else home, home))
    if given["record"]:
        outputs = [f"{home}/{name}" if name else home for name in names or [""]]
        actions.append(recorder(given, home, outputs, [topic for pair in topics.values() for topic in pair]))
    return actions


def camera_topics(given: dict[str, str], name: str) -> tuple[str, str]:
    """The image and CameraInfo topics of a camera."""
    image = given["image"].replace("{camera}", name)
    beside = image.rpartition("/")[0] + "/camera_info"
    info = given["camera_info"].replace("{camera}", name) or beside.lstrip("/" if "/" not in image else "")
    return (f"{image}/compressed" if given["compressed"] == "true" else image), info


def mesh_node(given: dict[str, str], names: list[str], topics: dict[str, tuple[str, str]]) -> LifecycleNode:
    """The node itself. Arguments that were given win over the parameter file."""
    parameters: dict[str, object] = {name: given[name] for name in ("checkpoint", "engine", "device") if given[name]}
    parameters |= {name: given[name] == "true" for name in ("autostart", "compressed", "use_sim_time")}
    if names:
        parameters["camera_names"] = names
    logger = ".".join(filter(None, (*given["namespace"].split("/"), NODE)))
    input_name = "image/compressed" if given["compressed"] == "true" else "image"
    remappings = []
    for name, (image, info) in topics.items():
        prefix = f"{name}/" if name else ""
        remappings += [(f"{prefix}{input_name}", image), (f"{prefix}camera_info", info)]
    return LifecycleNode(
        package="deformer_ros",
        executable="human_mesh_node",
        name=NODE,
        namespace=given["namespace"],
        parameters=[given["params_file"], parameters],
        remappings=remappings,
        ros_arguments=["--log-level", f"{logger}:={given['log_level']}"],
        output="screen",
        emulate_tty=True,
    )


def rviz(given: dict[str, str], camera: str, home: str) -> Node:
    """RViz, its displays turned to where this node publishes."""
    frame = ["-f", given["fixed_frame"]] if given["fixed_frame"] else []
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(SHARE / "rviz" / "human_mesh.rviz"), *frame],
        parameters=[{"use_sim_time": given["use_sim_time"] == "true"}],
        remappings=[(f"/{NODE}/{topic}", f"{camera}/{topic}") for topic in ("markers", "image_annotated")],
    )


def recorder(given: dict[str, str], home: str, outputs: list[str], inputs: list[str]) -> ExecuteProcess:
    """A bag with the cameras, the people and what places them on the robot. A recorded topic counts as wanted."""
    topics = [f"{output}/{topic}" for output in outputs for topic in ("meshes", "markers")]
    topics += [f"{home}/topology", "/tf", "/tf_static", "/diagnostics", *inputs]
    clock = ["--use-sim-time"] if given["use_sim_time"] == "true" else []
    command = ["ros2", "bag", "record", "-o", given["record"], *clock, "--topics", *topics]
    return ExecuteProcess(cmd=command, output="screen")
