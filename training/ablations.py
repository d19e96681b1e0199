"""Train the paper's ablations for the same short budget and print the table.

    python -m training.ablations --config training/configs/small.yaml --out out/ablations steps=300 \
      init=out/regressor/best.safetensors poses.fraction=0 real.fraction=0 \
      rendered.caches=[out/features/renders] validation.caches=[out/features/held_out]

Further key=value are train.py's; every row gets them, so start from the first stage's weights (`init`), which know no
decoder. A row that is done is kept; one that was stopped goes on. Each row is a process of its own, whose peak memory
is measured. Written into --out: ablations.json, ablations.md, and a training run a row.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.training.loop import CHECKPOINT
from deformer_core.training.memory import run_measured
from deformer_core.training.settings import read_settings

ROWS: dict[str, tuple[str, ...]] = {
    "full model": (),
    "no sparsity": ("network.sparse=false",),
    "no feedback": ("network.feedback=false",),
    "single scale": ("network.maps=[16]",),
    "coarse only": ("network.correction=false",),
}
"""Overrides that make each row. Coarse only: the finer meshes are upsampled by fixed weights."""
COLUMNS = ("pa_mpjpe_mm", "mpjpe_mm", "pve_mm", "ms_per_step", "memory_mb")
Row = dict[str, float]


def train_row(name: str, options: argparse.Namespace) -> Row:
    """Train a row, or read what it gave before. Errors: `InputError` if training fails, or the row was another's."""
    folder = options.out / name.replace(" ", "_")
    overrides = [*options.overrides, *ROWS[name]]
    config, mapping = read_settings(options.config, overrides)
    done = folder / "row.json"
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["config"] != mapping:
            raise InputError(f"{done} is of another configuration: give another --out, or delete the folder")
        return found["row"]
    command = [sys.executable, "-m", "training.train", "--config", str(options.config), "--out", str(folder)]
    log = folder / "output.log"
    resumed = (folder / CHECKPOINT).is_file()
    code, memory = run_measured([*command, "--resume", *overrides], log)
    if code == 130:  # by the same signal as this program, or by one of its own
        raise KeyboardInterrupt
    if code:
        lines = log.read_text(encoding="utf-8").strip().splitlines() or [f"exit code {code}"]
        raise InputError(f"row '{name}' stopped: {lines[-1]} (all of it in {log})")
    row = read_row(folder / "metrics.jsonl", config.batch_size) | {"memory_mb": memory}
    if resumed:
        print(f"{name}: its memory is that since it went on")
    with replace_file(done) as temporary:
        temporary.write_text(json.dumps({"config": mapping, "row": row}), encoding="utf-8")
    return row


def read_row(metrics: Path, batch_size: int) -> Row:
    """The last validation's means over its sets of images (of poses, without any), and the median time of a step."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    validations = [entry["validation"] for entry in entries if "validation" in entry]
    if not validations or not validations[-1]:
        raise InputError(f"{metrics} has no validation: give validation.caches or validation.streams")
    sets = validations[-1]
    sets = {name: figures for name, figures in sets.items() if name != "poses"} or sets
    row: Row = {}
    for figure in COLUMNS[:3]:
        values = [figures[figure] for figures in sets.values() if figure in figures]
        if values:
            row[figure] = statistics.mean(values)
    speeds = [entry["samples_per_s"] for entry in entries if "samples_per_s" in entry]
    return row | {"ms_per_step": 1000 * batch_size / statistics.median(speeds)} if speeds else row


def markdown(rows: dict[str, Row]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows.items():
        cells = (f"{row[column]:.1f}" if column in row else "-" for column in COLUMNS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("training/configs/small.yaml"))
    parser.add_argument("--out", type=Path, default=Path("out/ablations"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of train.py, for every row")
    options = parser.parse_intermixed_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the row that trains is stopped, and saves
    rows: dict[str, Row] = {}
    try:
        for name in ROWS:
            print(f"{name} ...", flush=True)
            rows[name] = train_row(name, options)
            with replace_file(options.out / "ablations.json") as temporary:
                temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            with replace_file(options.out / "ablations.md") as temporary:
                temporary.write_text(markdown(rows), encoding="utf-8")
    except InputError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(markdown(rows) + f"written: {options.out}/ablations.json, ablations.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
