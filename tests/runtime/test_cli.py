"""The command as users run it: good input beside every kind of bad input, exit codes, what is left on the disk."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deformer_core.cli import main

BOX = "40,47,236,330"


@pytest.fixture
def scene(tmp_path, photo, monkeypatch):
    """A folder to work in with a good photo of two people."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "cache"))
    cv2.imwrite("good.png", photo[..., ::-1])
    return tmp_path


@pytest.fixture
def run(scene, checkpoint, capsys):
    """`run(arguments...)` to (exit code, stdout, stderr); torch, so that no graph has to be exported."""

    def call(*arguments, model=checkpoint):
        options = ["--model", str(model), "--engine", "torch", "--threads", "1", "--level", "coarse"]
        code = main(["run", *arguments, *options])
        return code, *capsys.readouterr()

    return call


def listing(folder):
    return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).exists() else []


def test_people_are_found_and_everything_is_saved(run):
    code, out, err = run("good.png", "--save", "overlay,side,skeleton,glb,npz")
    assert code == 0, err
    names = ["good.glb", "good.npz", "good_overlay.png", "good_side.png", "good_skeleton.png"]
    assert listing("out") == names
    assert "good.png: 2 people -> " in out and all(name in out for name in names) and "1 of 1 inputs done" in out
    with np.load("out/good.npz") as archive:
        assert archive["vertices"].shape[0] == archive["translation"].shape[0] == 2


def make_bad_inputs(photo):
    """Every kind of input that cannot be used, and the words that its sentence must hold."""
    jpeg = cv2.imencode(".jpg", photo)[1].tobytes()
    files = {
        "text.jpg": (b"hello", "not an image"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cut off"),
        "zero.mp4": (b"", "0 bytes"),
        "cut.mp4": (b"\0\0\0\x20ftypisom" + bytes(500), "neither an image nor a video"),
        "tiny.png": (cv2.imencode(".png", photo[:1, :1])[1].tobytes(), "1x1"),
        "nobody.png": (cv2.imencode(".png", np.full((200, 300, 3), 99, np.uint8))[1].tobytes(), "no person found"),
    }
    for name, (data, _) in files.items():
        Path(name).write_bytes(data)
    Path("nothing").mkdir()
    return {name: words for name, (_, words) in files.items()} | {"nothing": "holds no photo", "no.png": "cannot open"}


def test_bad_inputs_are_told_and_the_others_done(run, photo):
    bad = make_bad_inputs(photo)
    code, out, err = run(*list(bad)[:4], "good.png", *list(bad)[4:], "--save", "overlay,npz,glb")
    assert code == 2
    lines = err.splitlines()
    for name, words in bad.items():
        assert sum(name in line and words in line for line in lines) == 1, (name, err)
    assert "good.png: 2 people" in out and "1 of 9 inputs done" in out
    assert listing("out") == ["good.glb", "good.npz", "good_overlay.png"]
    assert "Traceback" not in err


def test_odd_but_good_photos(run, photo):
    """16 bits, gray, RGBA, JPEG with people upside down in the file and turned by EXIF."""
    cv2.imwrite("deep.png", photo.astype(np.uint16) * 257)
    cv2.imwrite("gray.png", cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))
    cv2.imwrite("alpha.png", np.dstack([photo, np.full(photo.shape[:2], 200, np.uint8)]))
    turned = cv2.imencode(".jpg", photo[::-1, ::-1])[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    header = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big")
    Path("turned.jpg").write_bytes(turned[:2] + header + exif + turned[2:])
    code, out, err = run("deep.png", "gray.png", "alpha.png", "turned.jpg", "--save", "npz")
    assert code == 0, err
    boxes = {}
    for name in ("deep", "gray", "alpha", "turned"):
        with np.load(f"out/{name}.npz") as archive:
            boxes[name] = archive["box"][archive["box"][:, 0].argsort()]
        assert boxes[name].shape == (2, 4)
        np.testing.assert_allclose(boxes[name], boxes["deep"], atol=25)


def test_boxes_in_every_form(run):
    Path("list.json").write_text(json.dumps([[40, 47, 236, 330], [260, 63, 431, 314]]))
    Path("names.json").write_text(json.dumps({"good.png": [[40, 47, 236, 330]]}))
    for boxes, count in ((BOX, 1), (BOX + ";260,63,431,314", 2), ("list.json", 2), ("names.json", 1)):
        code, _, err = run("good.png", "--boxes", boxes, "--save", "npz")
        assert code == 0, err
        with np.load("out/good.npz") as archive:
            assert len(archive["box"]) == count and archive["box"][0].tolist() == [40, 47, 236, 330]
    Path("wrong.json").write_text('{"good.png": [[1, 2, 3]]}')
    for boxes in ("1,2,3", "a,b,c,d", "wrong.json", "absent.json"):
        code, _, err = run("good.png", "--boxes", boxes)
        assert code == 2 and boxes in err and "Traceback" not in err


def test_a_box_outside_the_image(run):
    code, _, err = run("good.png", "--boxes", f"{BOX};900,10,990,90")
    assert code == 2 and "good.png: box 1 (900, 10, 990, 90) lies outside the image of 480x360" in err
    assert listing("out") == []


@pytest.mark.parametrize("text", ["nan,nan,240,180", "500,0,240,180", "inf,500,240,180", "1,2,3", "a,b,c,d"])
def test_bad_intrinsics(run, text):
    code, _, err = run("good.png", "--intrinsics", text)
    assert code == 2 and "intrinsics" in err and "Traceback" not in err and listing("out") == []


def test_good_intrinsics(run):
    assert run("good.png", "--intrinsics", "500,510,240,180", "--save", "npz")[0] == 0
    with np.load("out/good.npz") as archive:
        assert archive["intrinsics"][0].tolist() == [[500, 0, 240], [0, 510, 180], [0, 0, 1]]


def test_bad_checkpoints(run, checkpoint):
    data = checkpoint.read_bytes()
    Path("cut.safetensors").write_bytes(data[: len(data) // 2])
    header = int.from_bytes(data[:8], "little")
    record = json.loads(data[8 : 8 + header])
    inner = json.loads(record["__metadata__"]["deformer"])
    inner["body"]["hash"] = "another_body_hash"
    record["__metadata__"]["deformer"] = json.dumps(inner)
    text = json.dumps(record).encode()
    Path("other.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + header :])
    for name, words in (
        ("absent.safetensors", "there is no checkpoint"),
        ("cut.safetensors", "cut off or corrupt"),
        ("good.png", "cut off or corrupt"),
        ("other.safetensors", "another_body_hash"),
        ("unheard_of", "missing"),
    ):
        code, _, err = run("good.png", model=name)
        assert code == 2 and name in err and words in err and "Traceback" not in err
        assert listing("out") == []


def test_names_do_not_collide(run, scene, photo):
    for folder in ("a", "b"):
        Path(folder).mkdir()
        cv2.imwrite(f"{folder}/good.jpg", photo[..., ::-1])
    code, out, _ = run("good.png", "a", "b/good.jpg", "--save", "npz")
    assert code == 0 and listing("out") == ["good.npz", "good_2.npz", "good_3.npz"] and "3 of 3" in out


def test_a_video(run, photo):
    writer = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (480, 360))
    for _ in range(3):
        writer.write(photo[..., ::-1])
    writer.release()
    code, out, err = run("clip.mp4", "--save", "overlay,npz", "--out", "deep/er")
    assert code == 0, err
    assert "clip.mp4: 3 frames, up to 2 people" in out and listing("deep/er") == ["clip.npz", "clip_overlay.mp4"]
    assert cv2.VideoCapture("deep/er/clip_overlay.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_a_huge_photo(run, photo, scene):
    """20000 x 20000 pixels with the people in its middle; drawn at 3840."""
    big = np.full((20_000, 20_000), 128, np.uint8)
    big[5000:15_000, 3333:16_666] = cv2.resize(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (13_333, 10_000))
    cv2.imwrite("huge.jpg", big, [cv2.IMWRITE_JPEG_QUALITY, 50])
    del big
    code, out, err = run("huge.jpg")
    assert code == 0, err
    assert "huge.jpg: 2 people" in out and cv2.imread("out/huge_overlay.jpg").shape == (3840, 3840, 3)


def command(*arguments):
    return [sys.executable, "-m", "deformer_core", *arguments]


def test_ctrl_c_leaves_nothing(scene, checkpoint, photo):
    writer = cv2.VideoWriter("long.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (480, 360))
    for _ in range(3000):
        writer.write(photo[..., ::-1])
    writer.release()
    options = ["--model", str(checkpoint), "--engine", "torch", "--threads", "1", "--save", "overlay,glb,npz"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    # A shell's background jobs ignore Ctrl-C, and so would a child of a test suite that runs as one.
    process = subprocess.Popen(
        command("run", "long.mp4", *options),
        stderr=subprocess.PIPE,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(Path("out").rglob("*.glb")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Stopped" in err and b"Traceback" not in err
    assert listing("out") == []


def test_help_loads_nothing_heavy():
    text = subprocess.run(command("run", "--help"), capture_output=True, text=True, check=True).stdout
    assert "--boxes" in text
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "deformer_core", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert not any(f" {name}\n" in loaded for name in ("torch", "numpy", "cv2", "onnxruntime"))


def test_doctor(scene, capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("python", "torch", "onnxruntime", "CPUExecutionProvider", "cache", "weights", "engine", str(scene)):
        assert words in out
    assert "nanodet_g_416.onnx" in out and "sha256" in out


def test_export_of_a_bad_checkpoint(scene, capsys):
    assert main(["export", "--model", "absent.safetensors", "--out", "a.onnx"]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err and not Path("a.onnx").exists()


@pytest.mark.skipif(torch.cuda.is_available() and find_spec("tensorrt") is not None, reason="it can be had here")
def test_export_to_tensorrt_says_what_is_missing(scene, capsys):
    assert main(["export", "--format", "tensorrt", "--out", "a.plan"]) == 2
    error = capsys.readouterr().err
    assert ("pip install" in error or "torch sees none" in error) and error.count("\n") == 1
    assert not Path("a.plan").exists()


def test_unknown_options(scene):
    for arguments in ([], ["fly"], ["run"], ["run", "good.png", "--level", "finest"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert main(["run", "good.png", "--save", "overlay,stl"]) == 2
