import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from deformer_core.errors import InputError
from deformer_core.training.lifting import load_lifting
from deformer_core.training.loop import CHECKPOINT, Trainer, load_state
from training.train import main, parse, prepare


@pytest.fixture
def config(small_run: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(small_run))
    return path


def trainer(*arguments: object) -> Trainer:
    return prepare(parse([str(argument) for argument in arguments]))


def final(folder: Path) -> dict[str, Tensor]:
    state = load_state(folder / CHECKPOINT)
    engine = state["engine"]
    optimizer = {
        f"{number}.{name}": value
        for number, entries in engine["optimizer"]["state"].items()
        for name, value in entries.items()
    }
    return {**engine["model"], **{f"average.{key}": value for key, value in engine["average"].items()}, **optimizer}


DECODER = ("model=deformer", "stage=decoder", "optimizer.regressor_rate=0.1", "steps=5")


@pytest.mark.parametrize("extra", [(), DECODER], ids=["lifting", "decoder"])
def test_resume_after_a_kill_is_bit_for_bit(config: Path, extra: tuple[str, ...], tmp_path: Path, seed: int) -> None:
    """Killed in the middle of a random step, whose work is lost; saved at some step before."""
    whole = trainer("--config", config, "--out", tmp_path / "whole", *extra)
    steps = whole.config.steps
    whole.run()
    save_every, killed = 1 + seed % 3, 2 + seed // 3 % (steps - 2)
    part = trainer("--config", config, "--out", tmp_path / "part", f"save_every={save_every}", *extra)
    original = part._train_step

    def dies(*arguments: Any) -> Any:
        if part.step == killed:
            raise SystemError("killed")
        return original(*arguments)

    part._train_step = dies  # type: ignore[method-assign]
    with pytest.raises(SystemError):
        part.run()
    torch.manual_seed(99)
    again = trainer(
        "--out", tmp_path / "part", "--resume", *([] if killed >= save_every else ["--config", config, *extra])
    )
    assert again.step == killed // save_every * save_every
    again.run()
    expected, found = final(tmp_path / "whole"), final(tmp_path / "part")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_run_leaves_model_log_and_figures(config: Path, body: Any, tmp_path: Path) -> None:
    assert main(["--config", str(config), "--out", str(tmp_path / "out")]) == 0
    load_lifting(tmp_path / "out" / "model.safetensors", body)
    load_lifting(tmp_path / "out" / "best.safetensors", body)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 8]
    assert all(line["total"] > 0 and line["samples_per_s"] > 0 for line in lines[:-1])
    assert lines[-1]["validation"]["poses"]["pa_mpjpe_mm"] == lines[-1]["best"]["score"]
    assert "step 8 " in (tmp_path / "out" / "train.log").read_text()


def test_training_lowers_the_loss(config: Path, tmp_path: Path) -> None:
    run = trainer("--config", config, "--out", tmp_path / "o", "steps=30", "lifting.width=64", "optimizer.warmup=3")
    run.run()
    totals = [json.loads(line).get("total") for line in (tmp_path / "o" / "metrics.jsonl").read_text().splitlines()]
    assert sum(totals[-6:-1]) < 0.75 * sum(totals[:5])


def test_stops_on_a_loss_that_is_not_finite(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer("--config", config, "--out", tmp_path / "out")
    turns = run.mixture.turns

    def poisoned(*steps: int) -> Any:
        for step, batches in enumerate(turns(*steps)):
            if step == 3:
                batches["features"]["camera"][0] = torch.nan
            yield batches

    run.mixture.turns = poisoned  # type: ignore[method-assign]
    with pytest.raises(InputError, match="not_finite_3.pt") as caught:
        run.run()
    assert "nan" in str(caught.value) and "step 3" in str(caught.value)
    saved = torch.load(tmp_path / "out" / "not_finite_3.pt", weights_only=True)
    assert saved["batches"][0]["features"]["camera"].isnan().any()
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_ctrl_c_saves(config: Path, tmp_path: Path) -> None:
    run = trainer("--config", config, "--out", tmp_path / "out")
    original = run._after_step

    def interrupted(*arguments: Any) -> None:
        original(*arguments)
        if run.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    run._after_step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert load_state(tmp_path / "out" / CHECKPOINT)["step"] == 4


def test_average_is_swapped_in_and_out(config: Path, tmp_path: Path) -> None:
    run = trainer("--config", config, "--out", tmp_path / "out", "steps=2")
    run.run()
    live = {name: p.detach().clone() for name, p in run.task.model.named_parameters()}
    with run.engine.swapped(run.average):
        inside = {name: p.detach().clone() for name, p in run.task.model.named_parameters()}
    assert all(torch.equal(p, live[name]) for name, p in run.task.model.named_parameters())
    assert all(torch.equal(inside[name], run.average[name]) for name in inside)
    assert any(not torch.equal(inside[name], live[name]) for name in inside)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ([], "--config"),
        (["--config", "{config}", "stepps=3"], "steps"),
        (["--config", "{config}", "rendered.caches=[/nowhere]"], "nowhere"),
        (["--config", "{config}", "init=/nowhere/x.safetensors"], "x.safetensors"),
        (["--config", "/nowhere/c.yaml"], "c.yaml"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], text: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(config=config) for argument in arguments]
    assert main([*filled, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip()
    assert text in message and len(message.splitlines()) == 1


def test_a_folder_in_use_is_not_overwritten(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(config), "--out", str(tmp_path / "out"), "steps=1"]
    assert main(arguments) == 0
    assert main(arguments) == 2 and "--resume" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"damaged")
    assert main(["--config", str(config), "--out", str(tmp_path), "--resume"]) == 2
    assert CHECKPOINT in capsys.readouterr().err
