"""The node's parameters: one table of names, defaults, ranges and meanings, and the checks on them.

The table is the dataclass `Settings`; nothing here needs ROS except `declare` and `read`, which talk to a node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from deformer_core.body.topology import LEVELS
from deformer_core.errors import InputError
from deformer_core.runtime.engines import ENGINES

if TYPE_CHECKING:
    from rclpy.node import Node

CONFIGURE = "configure"
"""Read when the node is configured: may be set while it is unconfigured."""
ALWAYS = "always"
"""May be set at any time, takes effect with the next image."""
START = "start"
"""Read when the process starts, read-only."""

RECTIFICATIONS = ("auto", "raw", "rectified")
BY_ID = "by_id"
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_CAMERA_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def _parameter(
    default: Any,
    text: str,
    *,
    when: str = ALWAYS,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {"text": text, "when": when, "low": low, "high": high, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Values of all parameters. The type of a parameter is that of its default."""

    autostart: bool = _parameter(True, "Configure and activate the node when it starts.", when=START)
    checkpoint: str = _parameter(
        "small", "Weights: the name of shipped ones, or the path of a checkpoint.", when=CONFIGURE
    )
    engine: str = _parameter("auto", "What runs the model.", when=CONFIGURE, choices=ENGINES)
    device: str = _parameter("auto", "auto, cpu, cuda or cuda:N.", when=CONFIGURE)
    threads: int = _parameter(
        0, "Threads of the model on a CPU; 0 takes all cores.", when=CONFIGURE, low=0, high=256
    )
    mirrored: bool = _parameter(
        False, "Look at each person in a mirror too and take the mean: more exact, half as fast.", when=CONFIGURE
    )
    camera_names: list[str] = _parameter(
        [""], "Names of the cameras, which prefix their topics; one empty name adds no prefix.", when=CONFIGURE
    )
    compressed: bool = _parameter(
        False, "Subscribe to image/compressed (sensor_msgs/CompressedImage) instead of image.", when=CONFIGURE
    )
    rectification: str = _parameter(
        "auto",
        "Whether images are already undistorted; auto: if the topic's name says 'rect'.",
        when=CONFIGURE,
        choices=RECTIFICATIONS,
    )
    default_fov_deg: float = _parameter(
        55.0, "Diagonal field of view of a camera without calibration, degrees.", low=10.0, high=170.0
    )
    detection_threshold: float = _parameter(
        0.4, "Smallest score of the detector at which somebody is reported.", low=0.05, high=1.0
    )
    max_people: int = _parameter(
        10, "Most people per image, the most certain first.", low=1, high=100
    )
    track_timeout_s: float = _parameter(
        1.0, "How long an id outlives its person's last detection, seconds.", low=0.0, high=60.0
    )
    smoothing: float = _parameter(0.3, "Smoothing over time, 0 (off) to 1 (strong).", low=0.0, high=1.0)
    mesh_level: str = _parameter("full", "Resolution of the published meshes.", choices=LEVELS)
    marker_level: str = _parameter("middle", "Resolution of the markers' meshes.", choices=LEVELS)
    marker_rate: float = _parameter(
        15.0, "Most marker messages per second and camera; RViz draws every one it gets.", low=0.1, high=120.0
    )
    marker_color: str = _parameter(BY_ID, "by_id for a colour per person, or one colour as #rrggbb.")
    marker_opacity: float = _parameter(1.0, "Opacity of the markers' meshes.", low=0.05, high=1.0)
    annotated_rate: float = _parameter(
        10.0, "Most annotated images per second and camera; drawing takes time from the model.", low=0.1, high=120.0
    )
    publish_tf: bool = _parameter(
        True, "Send joint transforms to /tf. Anybody listening to /tf then keeps the node at work."
    )
    lazy: bool = _parameter(True, "Work only while somebody listens, output by output.")
    image_timeout_s: float = _parameter(
        2.0, "Report a camera as silent after so long without an image, seconds.", low=0.1, high=3600.0
    )
    diagnostics_period_s: float = _parameter(
        1.0, "Time between two diagnostics messages, seconds.", low=0.1, high=60.0, when=CONFIGURE
    )


TABLE: dict[str, Field] = {entry.name: entry for entry in fields(Settings)}
DEFAULTS = Settings()


def check(name: str, value: Any) -> None:
    """Check what a range cannot say. Errors: `InputError` with the reason, for the one who sets the parameter."""
    choices = TABLE[name].metadata["choices"]
    if choices and value not in choices:
        raise InputError(f"{name} must be one of {', '.join(choices)}, not '{value}'")
    if name == "marker_color" and value != BY_ID and not _COLOR.fullmatch(value):
        raise InputError(f"marker_color must be {BY_ID} or a colour as #rrggbb, not '{value}'")
    if name == "device" and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise InputError(f"device must be auto, cpu, cuda or cuda:N, not '{value}'")
    if name == "camera_names":
        _check_camera_names(list(value))


def _check_camera_names(names: list[str]) -> None:
    if names == [""]:
        return
    for name in names:
        if not _CAMERA_NAME.fullmatch(name):
            raise InputError(f"camera_names: '{name}' is no name: use letters, digits and _, a letter first")
    if not names or len(set(names)) < len(names):
        raise InputError("camera_names must name at least one camera, each once")


def color_of(text: str) -> tuple[float, float, float] | None:
    """RGB in 0..1 of "#rrggbb"; None for a colour per person."""
    if text == BY_ID:
        return None
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def check_change(values: Mapping[str, Any], configured: bool) -> None:
    """Check parameters that are to be set together. Names of other tables (use_sim_time, qos_overrides) pass.

    Raises:
        InputError: a value that cannot be, or one that is only read when the node is configured, and it is.
    """
    for name, value in values.items():
        if name not in TABLE:
            continue
        if configured and TABLE[name].metadata["when"] == CONFIGURE:
            raise InputError(f"{name} is read at configure: deactivate and clean up the node, set it, configure again")
        check(name, value)


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with other values, where they are of this table."""
    return replace(settings, **{name: value for name, value in values.items() if name in TABLE})


def declare(node: Node) -> None:
    """Declare all parameters on a node, with ranges.

    Raises:
        InputError: a value given from outside has the wrong type, is out of range or cannot be.
    """
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    try:
        for name in TABLE:
            node.declare_parameter(name, getattr(DEFAULTS, name), _descriptor(name))
            check(name, node.get_parameter(name).value)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        raise InputError(f"{str(error).rstrip('.')}; see `ros2 param describe` or the README") from error


def read(node: Node) -> Settings:
    """The node's present settings."""
    return Settings(**{name: node.get_parameter(name).value for name in TABLE})


def _descriptor(name: str) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    default, meta = getattr(DEFAULTS, name), TABLE[name].metadata
    descriptor = ParameterDescriptor(description=meta["text"], read_only=meta["when"] == START)
    if meta["choices"]:
        descriptor.additional_constraints = "one of " + ", ".join(meta["choices"])
    elif meta["when"] == CONFIGURE:
        descriptor.additional_constraints = "read at configure"
    if isinstance(default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=meta["low"], to_value=meta["high"])]
    elif isinstance(default, int) and not isinstance(default, bool):
        descriptor.integer_range = [IntegerRange(from_value=meta["low"], to_value=meta["high"])]
    return descriptor
