"""The command on files as users hold them: a body in SMPL's format and sequences in 3DPW's, both made here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deformer_core.body.assets import load_body
from deformer_core.checkpoint import save_checkpoint
from deformer_core.config import load_config
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from tests.body.made_smpl import make_smpl
from tests.data.readers.drawn import Drawn
from tests.data.readers.test_readers_files import write_3dpw
from tests.training.conftest import NETWORK
from training.evaluate import main


@pytest.fixture
def files(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A checkpoint trained (not at all) on SMPL, whose female body differs, and two frames of 3DPW."""
    smpl = tmp_path / "smpl"
    make_smpl(smpl, gender="FEMALE", seed=1)
    make_smpl(smpl)
    monkeypatch.setenv("DEFORMER_SMPL", str(smpl))
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "cache"))
    body = load_body("smpl")
    config = replace(load_config(DeFormerConfig, NETWORK), body="smpl")
    save_checkpoint(tmp_path / "mine.safetensors", DeFormer(config, body), {}, {})
    data = tmp_path / "3DPW"
    write_3dpw([Drawn(rng, data, f"imageFiles/walk/image_{number:05d}.jpg") for number in (0, 2)], data)
    return {"checkpoint": tmp_path / "mine.safetensors", "data": data, "out": tmp_path / "evaluate.json"}


def measure(name: str, files: dict[str, Path]) -> dict[str, Any]:
    given = ["--checkpoint", str(files["checkpoint"]), "--out", str(files["out"])]
    assert main([*given, "--protocol", name, "--dataset", f"path={files['data']}"]) == 0
    return json.loads(files["out"].read_text())["mine"][name]


def test_3dpw_by_both_protocols(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    spin = measure("3dpw-spin", files)
    assert "FastMETRO" not in capsys.readouterr().out
    metro = measure("3dpw-metro", files)
    shown = capsys.readouterr().out
    assert "FastMETRO" in shown and "MVE" in shown and "joint right_knee" in shown and "group walk" in shown
    for row in (spin, metro):
        assert row["people"] == 2 and row["per_group"]["walk"]["people"] == 2
        assert all(0 < row[figure] < 3000 for figure in ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm"))
    assert abs(spin["pve_mm"] - metro["pve_mm"]) > 0.1  # another body and another root
