"""The node's life: every transition, failures on the way, and the process from start to Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deformer_core.errors import InputError

SCRIPT = Path(__file__).parents[2] / "scripts" / "human_mesh_node"
BEFORE = {
    "unconfigured": (),
    "inactive": ("configure",),
    "active": ("configure", "activate"),
    "stopped": ("configure", "activate", "deactivate"),
}
"""How to get to a state."""


def call(graph, node, transition: str) -> bool:
    """As `ros2 lifecycle set` does: through the node's service."""
    from lifecycle_msgs.srv import ChangeState

    client = graph.robot.create_client(ChangeState, f"/{node.get_name()}/change_state")
    request = ChangeState.Request()
    request.transition.label = transition
    assert graph.spin(client.service_is_ready)
    future = client.call_async(request)
    assert graph.spin(future.done, 30)
    return future.result().success


def state_of(node) -> str:
    return node._state_machine.current_state[1]


def test_all_transitions_by_service_twice_over(graph):
    node = graph.mesh_node()
    for _ in range(2):
        for transition, state in (
            ("configure", "inactive"),
            ("activate", "active"),
            ("deactivate", "inactive"),
            ("activate", "active"),
            ("deactivate", "inactive"),
            ("cleanup", "unconfigured"),
        ):
            assert call(graph, node, transition), transition
            assert state_of(node) == state
    assert not call(graph, node, "activate")


@pytest.mark.parametrize("state", BEFORE)
def test_shutdown_from_every_state(graph, state):
    node = graph.mesh_node()
    for transition in BEFORE[state]:
        getattr(node, f"trigger_{transition}")()
    node.trigger_shutdown()
    assert state_of(node) == "finalized"


def test_a_checkpoint_that_is_not_there(graph, tmp_path):
    from diagnostic_msgs.msg import DiagnosticArray

    from deformer_ros.pipeline import load_model

    node = graph.mesh_node(checkpoint=str(tmp_path / "none.safetensors"), diagnostics_period_s=0.2)
    works, node._load = node._load, load_model
    heard = graph.listen(DiagnosticArray, "/diagnostics")
    assert not call(graph, node, "configure")
    assert state_of(node) == "unconfigured"
    assert "there is no checkpoint" in node.trouble and "none.safetensors" in node.trouble
    assert graph.spin(lambda: heard and heard[-1].status[0].level == b"\x02")
    assert heard[-1].status[0].message == node.trouble
    node._load = works
    assert call(graph, node, "configure") and not node.trouble


def test_a_level_that_the_model_does_not_make(graph, monkeypatch):
    from deformer_ros.pipeline import Model

    node = graph.mesh_node(mesh_level="coarse")
    works = node._load
    node._load = lambda settings: Model(*works(settings)[:2], ("full",))
    assert not call(graph, node, "configure")
    assert "no mesh_level 'coarse': use one of full" in node.trouble


@pytest.mark.parametrize("error", [RuntimeError("the driver is gone"), MemoryError()])
def test_an_error_that_nobody_foresaw_leads_back_to_unconfigured(graph, error):
    node = graph.mesh_node()
    works = node._load

    def fail(settings):
        raise error

    node._load = fail
    assert not call(graph, node, "configure")
    assert state_of(node) == "unconfigured" and "configure failed" in node.trouble
    node._load = works
    assert call(graph, node, "configure")


def test_wrong_parameters_at_the_start_are_a_sentence(graph):
    for parameters, words in (
        ({"smoothing": 7.0}, "smoothing"),
        ({"engine": "magic"}, "one of auto"),
        ({"max_people": 0.5}, "max_people"),
        ({"camera_names": ["a", "a"]}, "each once"),
    ):
        with pytest.raises(InputError, match=words):
            graph.mesh_node(**parameters)


def test_the_process_starts_by_itself_and_ends_with_ctrl_c(graph, checkpoint):
    from lifecycle_msgs.srv import GetState

    options = ["-p", f"checkpoint:={checkpoint}", "-p", "engine:=torch", "-p", "threads:=1", "-r", "__node:=alone"]
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--ros-args", *options], env=environment, stderr=subprocess.PIPE, text=True
    )
    client = graph.robot.create_client(GetState, "/alone/get_state")
    try:
        end = time.monotonic() + 60
        label = ""
        while label != "active" and time.monotonic() < end and process.poll() is None:
            if graph.spin(client.service_is_ready, 1):
                future = client.call_async(GetState.Request())
                label = future.result().current_state.label if graph.spin(future.done, 5) else ""
        assert label == "active"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "Ready in" in errors and "Traceback" not in errors


def test_the_process_refuses_wrong_parameters_in_one_line(ros):
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, SCRIPT, "--ros-args", "-p", "marker_rate:=1000.0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "marker_rate" in done.stderr and len(done.stderr.strip().splitlines()) == 1
