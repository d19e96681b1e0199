import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deformer_core.training.memory import run_measured
from training import ablations
from training.ablations import ROWS, main, markdown, read_row


def test_memory_of_a_process_is_its_own(tmp_path: Path) -> None:
    """100 MB allocated, and as much of a file that is only mapped."""
    program = (
        "import mmap, time; a = bytearray(b'1') * 100_000_000; f = open('big', 'wb'); f.write(bytes(100_000_000));"
        "f.close(); f = open('big', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096]);"
        "time.sleep(0.3); print('done')"
    )
    code, peak = run_measured([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {program}"],
                              tmp_path / "log")  # fmt: skip
    assert code == 0 and (tmp_path / "log").read_text() == "done\n"
    assert 100 < peak < 150 or peak != peak


def test_a_row_is_the_last_validation_and_the_median_speed(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"step": 1, "samples_per_s": 10.0},
        {"step": 1, "validation": {"a": {"pa_mpjpe_mm": 99.0}}},
        {"step": 2, "samples_per_s": 16.0},
        {"step": 3, "samples_per_s": 20.0},
        {"step": 3, "validation": {"a": {"pa_mpjpe_mm": 60.0, "pve_mm": 80.0}, "b": {"pa_mpjpe_mm": 70.0},
                                   "poses": {"pa_mpjpe_mm": 10.0}}},
    ]  # fmt: skip
    (tmp_path / "m").write_text("\n".join(json.dumps(entry) for entry in entries))
    assert read_row(tmp_path / "m", 8) == pytest.approx({"pa_mpjpe_mm": 65.0, "pve_mm": 80.0, "ms_per_step": 500.0})
    assert "| a | 65.0 | - | 80.0 | 500.0 | - |" in markdown({"a": read_row(tmp_path / "m", 8)})


def test_a_row_is_trained_and_kept(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_run | {"model": "deformer", "stage": "decoder", "steps": 2, "log_every": 1}
    config["validation"] = {"every": 2, "poses": 0, "caches": config["rendered"]["caches"]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(ablations, "ROWS", {"coarse only": ROWS["coarse only"]})
    command = ["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    rows = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert rows["coarse only"]["pa_mpjpe_mm"] > 0 and rows["coarse only"]["ms_per_step"] > 0
    assert (tmp_path / "out" / "ablations.md").read_text().count("\n") == 3
    written = (tmp_path / "out" / "coarse_only" / "row.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "out" / "coarse_only" / "row.json").stat().st_mtime_ns == written  # not trained again
    assert main([*command, "steps=3"]) == 2 and "another configuration" in capsys.readouterr().err
    assert main([*command[:2], "--out", str(tmp_path / "other"), "rendered.caches=[/nowhere]"]) == 2
    assert "row 'coarse only' stopped: train: /nowhere" in capsys.readouterr().err
