import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import save_checkpoint
from deformer_core.config import load_config
from deformer_core.data.keypoints2d import LabelledPerson
from deformer_core.data.sample import Sample
from deformer_core.errors import InputError
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.training import held_out
from deformer_core.training.figures import measure_2d, paired, table
from deformer_core.training.lifting import LiftingConfig, LiftingMLP, save_lifting
from deformer_core.training.predictions import Predictions, flip_error, lift, mirrored, predict
from tests.training.conftest import NETWORK
from training import evaluate
from training.evaluate import main


def person(box: tuple[float, float, float, float], keypoints: np.ndarray) -> LabelledPerson:
    return LabelledPerson(Path("x.png"), np.array(box, np.float32), keypoints.astype(np.float32), "x")


def test_pck_in_pixels_by_hand() -> None:
    """A box of side 80: a crop of side 100 about (50, 60); limits 8 and 4 pixels."""
    keypoints = np.zeros((17, 3))
    keypoints[0], keypoints[1], keypoints[2] = [50, 60, 2], [100, 60, 1], [50, 10, 2]
    uv = np.zeros((1, 17, 2), np.float32)
    uv[0, 0] = [0.06, 0.0]  # 3 pixels off
    uv[0, 1] = [1.1, 0.0]  # 5 pixels off
    uv[0, 2] = [0.0, -0.8]  # 10 pixels off
    found = measure_2d(uv, [person((20, 20, 80, 100), keypoints)], "x_")
    assert found == pytest.approx({"x_pck_0_1": 2 / 3, "x_pck_0_05": 1 / 3})


def test_paired_difference(rng: np.random.Generator, body: BodyTopology) -> None:
    joints = rng.normal(0, 0.3, (6, 23, 3)).astype(np.float32)
    samples = [Sample("s", np.zeros(3), np.zeros((23, 2)), np.ones(23), joints=one) for one in joints]

    def made(noise: float) -> Predictions:
        moved = joints + rng.normal(0, noise, joints.shape).astype(np.float32)
        return Predictions(np.zeros((6, 3)), np.ones((6, 3)), moved, moved, moved, moved)

    assert paired(made(0.01), made(0.1), samples, body.joint_names)["minus_lifting_mm"] < -20


def test_table_shows_what_was_not_measured() -> None:
    rows = {"a": {"pck": 0.123456, "people": 3}, "b": "not measured: gone", "c": {"a": {"pck": 1.0}}}
    text = table(rows, "small")
    assert "pck 0.1235" in text and "not measured: gone" in text and text.startswith("small\n")


@pytest.fixture
def checkpoint(body: BodyTopology, tmp_path: Path, seed: int) -> Path:
    config = load_config(DeFormerConfig, NETWORK)
    save_checkpoint(tmp_path / "tiny.safetensors", DeFormer(config, body), {}, {})
    return tmp_path / "tiny.safetensors"


def test_all_rows_of_a_model(
    checkpoint: Path, body: BodyTopology, people: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command on an untrained network, with a hold-out of drawn pictures in place of renders."""
    baseline = LiftingMLP(LiftingConfig(width=8, blocks=1), body)
    save_lifting(tmp_path / "lifting.safetensors", baseline)
    keys = ("box", "uv", "uv_weight", "joints", "rotations", "shape", "camera")
    samples = [
        Sample("s", image=np.full((256, 256, 3), 20 * row, np.uint8), **{key: people[key][row].numpy() for key in keys})
        for row in range(3)
    ]
    monkeypatch.setattr(
        evaluate, "hold_out", lambda *_: {"synthetic_clean": samples[:2], "synthetic_hard": samples[2:]}
    )
    cv2.imwrite(str(tmp_path / "a.png"), np.full((120, 160, 3), 90, np.uint8))
    labels = {"bbox_xywh": [20, 10, 60, 80], "keypoints": [[60.0, 50.0, 2]] * 17, "usable": True}
    (tmp_path / "coco.json").write_text(json.dumps([{"file": "a.png", "our_split": "val", "people": [labels] * 2}]))
    out = tmp_path / "out" / "evaluate.json"
    paths = {
        "--checkpoint": checkpoint,
        "--lifting": tmp_path / "lifting.safetensors",
        "--coco": tmp_path / "coco.json",
        "--pose2sim": tmp_path,
        "--out": out,
    }
    options = [str(part) for pair in paths.items() for part in pair]
    assert main(options) == 0
    rows = json.loads(out.read_text())["tiny"]
    for place in (rows, rows["lifting_baseline"]):
        for name, count in (("synthetic_clean", 2), ("synthetic_hard", 1)):
            row = place[name]
            assert row["people"] == count and all(
                row[key] > 0 for key in ("pa_mpjpe_mm", "mpjpe_mm", "pve_mm", "limb_ratio")
            )
        assert 0 <= place["coco_people"]["pck_0_05"] <= place["coco_people"]["pck_0_1"] <= 1
    assert {"teacher_pck_0_1", "teacher_pck_0_05"} <= rows["coco_people"].keys()
    assert rows["scenarios"]["low_light"]["people"] == 2 and rows["scenarios"]["low_light"]["pa_mpjpe_mm"] > 0
    assert rows["flip"].keys() == {"mm", "coco_mm"} and all(value > 0 for value in rows["flip"].values())
    assert rows["pose2sim"].startswith("not measured: ")
    with torch.no_grad():
        mesh = baseline.eval()(people["keypoints"], people["box"])["vertices_coarse"]
    joints = people["joints"].numpy()
    found = Predictions(people["box"].numpy(), *[joints] * 4, people["keypoints"].numpy())
    np.testing.assert_allclose(lift(baseline, found).vertices, mesh, atol=1e-5)

    assert main([*options, "--protocol", "coco-2d"]) == 0
    alone = json.loads(out.read_text())["tiny"]
    assert alone == {"coco_people": rows["coco_people"]}


def test_an_even_handed_model_has_no_flip_error(body: BodyTopology, rng: np.random.Generator) -> None:
    """All joints where the crop's brightness has its weight: even-handed, until something is added to x."""
    crops = [(rng.integers(0, 255, (8, 8, 3), np.uint8), rng.normal(0, 0.2, 3).astype(np.float32)) for _ in range(20)]

    def error(offset: float) -> np.ndarray:
        def model(images: np.ndarray, box: np.ndarray) -> dict[str, np.ndarray]:
            across = (images.mean((1, 3)) * np.linspace(-1, 1, 8)).mean(1)
            place = np.stack([across + box[:, 0] + offset, box[:, 1], box[:, 2]], 1).astype(np.float32)
            joints, one = place[:, None].repeat(23, 1), np.ones((len(box), 17, 3), np.float32)
            return {"joints": joints, "vertices_coarse": joints, "camera": one[:, 0], "keypoints": one}

        plain, other = (predict(model, of, len(crops)).joints for of in (crops, mirrored(crops)))
        return flip_error(plain, other, body.joint_mirror)

    np.testing.assert_allclose(error(0), 0, atol=1e-4)
    np.testing.assert_allclose(error(5.0), 10, atol=1e-4)


def test_missing_data_says_so_and_a_missing_checkpoint_stops(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "hold_out", lambda *_: {})
    out = tmp_path / "evaluate.json"
    nowhere = {"--data": "nowhere", "--out": out.name, "--lifting": "none.safetensors", "--pose2sim": "no_demo"}
    arguments = [part for key, name in nowhere.items() for part in (key, str(tmp_path / name))]
    assert main(["--checkpoint", str(checkpoint), *arguments]) == 0
    rows = json.loads(out.read_text())["tiny"]
    assert rows["coco_people"].startswith("not measured: ") and "coco_people.json" in rows["coco_people"]
    assert "none.safetensors" in rows["lifting_baseline"]
    assert rows["pose2sim"].startswith("not measured: ") and "pip download" in rows["pose2sim"]
    for protocol, text in (
        ("coco-2d", "coco_people.json"), ("pose2sim", "pip download"), ("3dpw-metro", "sequenceFiles"),
        ("h36m-p2", "vision.imar.ro"), ("emdb-1", "emdb"), ("3dpw", "3dpw-spin"),
    ):  # fmt: skip
        assert main(["--checkpoint", str(checkpoint), "--protocol", protocol, *arguments]) == 2
        message = capsys.readouterr().err.strip()
        assert text in message and len(message.splitlines()) == 1
    assert main(["--checkpoint", str(tmp_path / "gone.safetensors"), *arguments]) == 2
    assert "gone.safetensors" in capsys.readouterr().err


def test_the_hold_out_has_as_many_as_asked_fresh_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "RENDERS", 24)
    try:
        fresh = held_out.hold_out(tmp_path / "set", tmp_path / "no_data", 3)
    except InputError as error:
        pytest.skip(str(error))
    kept = held_out.hold_out(tmp_path / "set", tmp_path / "no_data", 3)
    for subset in (fresh, kept):
        assert [len(subset[name]) for name in ("synthetic_clean", "synthetic_hard")] == [3, 3]
        assert all(sample.clean for sample in subset["synthetic_clean"])
        assert not any(sample.clean for sample in subset["synthetic_hard"])
