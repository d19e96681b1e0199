"""Parameters, worker and diagnostics: the parts of the node that need no ROS."""

import threading
import time

import pytest

from deformer_core.errors import InputError
from deformer_ros import parameters
from deformer_ros.diagnostics import CameraMonitor, Level, Throttle
from deformer_ros.parameters import DEFAULTS, TABLE
from deformer_ros.worker import Mailbox, Worker


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def monitor(clock):
    return CameraMonitor("camera", "/image", clock)


def test_a_camera_without_images(monitor, clock):
    assert monitor.status(False, 0, 2.0).message == "idle: nobody listens"
    assert monitor.status(True, 0, 2.0).level == Level.OK
    clock.now += 3
    silent = monitor.status(True, 0, 2.0)
    assert silent.level == Level.WARN and "no image yet on /image, which has no publisher" in silent.message
    assert "QoS" in monitor.status(True, 1, 2.0).message


def test_a_camera_that_falls_silent(monitor, clock):
    monitor.received(False)
    monitor.done({"total": 0.1}, 1, "calibrated", "")
    assert monitor.status(True, 1, 2.0).message == "1 person"
    clock.now += 2.5
    silent = monitor.status(True, 0, 2.0)
    assert silent.level == Level.ERROR and "no image for 2.5 s on /image" in silent.message


def test_rates_drops_and_latencies(monitor, clock):
    for index in range(100):
        clock.now += 0.1
        monitor.received(replaced=index % 2 == 0)
        if index % 2:
            monitor.done({"total": index / 1000}, 2, "calibrated", "")
    values = monitor.status(True, 1, 2.0).values
    assert values["fps in"] in ("10.0", "10.2") and values["fps out"] in ("5.0", "5.2")
    assert values["dropped"] == "50" and values["people"] == "2"
    p50, p95 = map(float, values["total p50 p95 [ms]"].split())
    assert p50 == pytest.approx(50, abs=1) and p95 == pytest.approx(94, abs=2)


def test_a_problem_lasts_until_the_next_good_image(monitor):
    monitor.received(False)
    monitor.failed("the image has no pixels")
    bad = monitor.status(True, 1, 2.0)
    assert bad.level == Level.ERROR and bad.message == "the image has no pixels"
    monitor.lasting("calibration", "not calibrated")
    monitor.done({}, 0, "assumed", "nobody in the image")
    assert monitor.status(True, 1, 2.0).level == Level.WARN
    assert monitor.status(True, 1, 2.0).message == "nobody in the image; not calibrated"
    monitor.lasting("calibration", "")
    assert monitor.status(True, 1, 2.0).level == Level.OK


def test_the_throttle(clock):
    throttle = Throttle(5.0, clock)
    assert throttle("a") and not throttle("a") and throttle("b")
    clock.now += 6
    assert throttle("a") and not throttle("b", once=True)


def test_the_mailbox_holds_the_newest_of_each():
    mailbox = Mailbox()
    assert [mailbox.put("a", 1), mailbox.put("b", 2), mailbox.put("a", 3)] == [False, False, True]
    assert sorted(mailbox.take()) == [2, 3]
    mailbox.close()
    assert mailbox.take() == []


def test_the_worker_survives_errors_and_stops():
    done, failed, before = threading.Event(), [], threading.active_count()

    def work(items):
        if "bad" in items:
            raise RuntimeError("no")
        done.set()

    worker = Worker(work, failed.append)
    worker.start()
    worker.mailbox.put("a", "bad")
    while not failed:
        time.sleep(0.001)
    worker.mailbox.put("a", "good")
    assert done.wait(5)
    worker.stop()
    assert str(failed[0]) == "no" and threading.active_count() == before


def test_every_parameter_has_a_meaning_and_a_default_in_range():
    for name, entry in TABLE.items():
        value, meta = getattr(DEFAULTS, name), entry.metadata
        assert meta["text"].endswith(".")
        parameters.check(name, value)
        if type(value) in (int, float):
            assert meta["low"] <= value <= meta["high"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("engine", "magic", "one of auto, "),
        ("mesh_level", "finest", "one of coarse, middle, full"),
        ("marker_color", "red", "#rrggbb"),
        ("device", "gpu", "cuda:N"),
        ("camera_names", ["front", "front"], "each once"),
        ("camera_names", ["front cam"], "letters, digits"),
        ("camera_names", [], "at least one"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(name, value, words):
    with pytest.raises(InputError, match=words):
        parameters.check_change({name: value, "use_sim_time": True}, configured=False)


def test_what_is_read_at_configure_is_refused_later():
    parameters.check_change({"device": "cpu"}, configured=False)
    with pytest.raises(InputError, match="device is read at configure"):
        parameters.check_change({"device": "cpu"}, configured=True)
    parameters.check_change({"smoothing": 0.5}, configured=True)


def test_colors():
    assert parameters.color_of("by_id") is None
    assert parameters.color_of("#ff8000") == pytest.approx((1, 128 / 255, 0))
