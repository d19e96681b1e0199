import base64
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import save_checkpoint
from deformer_core.config import load_config
from deformer_core.data.sample import Batch, Sample
from deformer_core.errors import InputError
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.training.report import chart, figures_table, group_curves, joints_table, read_metrics, ticks
from tests.training.conftest import NETWORK
from training import report

LOG = [
    {"step": 10, "samples_per_s": 30.0, "total": 4.0, "uv": 1.0, "shape": 0.0, "rate": 1e-3},
    {"step": 10, "validation": {"poses": {"pa_mpjpe_mm": 90.0, "pck_0_1": 0.5}}, "best": {"score": 90.0, "step": 10}},
    {"step": 20, "samples_per_s": 31.0, "total": 3.0, "uv": 0.8, "shape": 0.0, "rate": 1e-3},
    {"step": 20, "samples_per_s": 29.0, "total": 2.5, "uv": 0.7, "shape": 0.0, "rate": 1e-3},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    text = "\n".join(json.dumps(entry) for entry in LOG) + '\n{"step": 30, "tot'
    (tmp_path / "metrics.jsonl").write_text(text)
    return tmp_path


def test_curves_of_a_run_that_went_on(run: Path) -> None:
    curves = read_metrics(run / "metrics.jsonl")
    assert curves["total"] == [(10, 4.0), (20, 2.5)] and curves["validation/poses/pa_mpjpe_mm"] == [(10, 90.0)]
    charts = group_curves(curves)
    assert set(charts) == {"loss", "loss terms", "samples a second", "learning rate", "validation: pa_mpjpe_mm",
                           "validation: pck_0_1"}  # fmt: skip
    assert list(charts["loss terms"]) == ["uv"]
    with pytest.raises(InputError, match="nowhere"):
        read_metrics(run / "nowhere")


def test_chart_puts_points_in_its_axes() -> None:
    text = chart("a < b", {"x & y": [(0, 1.0), (50, float("nan")), (100, 3.0)], "z": [(0, 2.0)]})
    assert "a &lt; b" in text and "x &amp; y" in text
    spots = [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', text)]
    assert len(spots) == 3 and all(52 <= x <= 488 and 10 <= y <= 200 for x, y in spots)
    assert spots[0][1] > spots[2][1] > spots[1][1]  # larger values stand higher
    assert chart("none", {"a": [(0, float("nan"))]}) == ""


def test_ticks_are_round_and_inside(rng: np.random.Generator) -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100] and ticks(0.11, 0.19, 4) == [0.12, 0.14, 0.16, 0.18]
    for low in rng.normal(0, 10, 20):
        high = low + rng.uniform(1e-3, 1e3)
        found = ticks(low, high)
        assert 2 <= len(found) <= 7 and low - 1e-6 <= min(found) and max(found) <= high + 1e-6


def test_tables() -> None:
    text = figures_table({"small": {"a": {"pck": 0.5}, "b": "not measured: <gone>", "inner": {"c": {"mm": 1.0}}}})
    assert "b: not measured: &lt;gone&gt;" in text and "<th>inner / c</th>" in text and "<td>0.5</td>" in text
    text = joints_table({"MPJPE": {"nose": 10.0, "ankle": 40.0}, "PA": {"nose": 5.0, "ankle": 20.0}})
    assert "width:50px" in text and "width:200px" in text


class Checker(html.parser.HTMLParser):
    """Counts tags, and that all but the void ones are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_whole_page(run: Path, people: Batch, body: BodyTopology, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("box", "uv", "uv_weight", "joints", "rotations", "shape", "camera")
    samples = [
        Sample(f"s:{row}", image=np.full((64, 64, 3), 90, np.uint8), **{key: people[key][row].numpy() for key in keys})
        for row in range(3)
    ]
    monkeypatch.setattr(report, "hold_out", lambda *_: {"synthetic_clean": samples})
    (run / "evaluate.json").write_text(json.dumps({"small": {"synthetic_clean": {"pa_mpjpe_mm": 60.0}}}))
    save_checkpoint(run / "best.safetensors", DeFormer(load_config(DeFormerConfig, NETWORK), body), {}, {})
    assert report.main([str(run)]) == 0
    text = (run / "report.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.seen.count("img") == 3 and checker.seen.count("svg") == 6
    assert "left_wrist" in text and "not measured" not in text and "s:1" in text
    assert not re.search(r'(src|href)="?https?:', text)  # nothing from elsewhere
    data = re.search(r"base64,([^']+)'", text)
    assert data and base64.b64decode(data[1]).startswith(b"\xff\xd8")


def test_a_run_without_weights_has_its_curves(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run)]) == 0
    text = (run / "report.html").read_text()
    assert text.count("not measured") == 2 and "best.safetensors" in text and "polyline" in text
    assert report.main([str(run / "gone")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
