"""One static page on a training run: `python -m training.report out/small`.

Curves from the run's metrics.jsonl; from its best weights, the per-joint errors and the worst cases on the synthetic
hold-out; and the table of evaluate.py, if it was written into the folder (--out RUN/evaluate.json). The page is one
file, RUN/report.html, that needs no network. What is not there says why.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deformer_core.checkpoint import read_checkpoint_info
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.runtime.engines import make_engine
from deformer_core.training.figures import true_meshes
from deformer_core.training.held_out import hold_out
from deformer_core.training.metrics import joint_errors, pa_mpjpe, per_joint, procrustes
from deformer_core.training.pictures import draw_person
from deformer_core.training.predictions import predict
from deformer_core.training.report import (
    WorstCase,
    chart,
    figures_table,
    group_curves,
    joints_table,
    page,
    read_metrics,
    worst_cases,
)
from training.evaluate import sample_crops

WORST = 8


def build(options: argparse.Namespace) -> str:
    """The page. Errors: `InputError` if the folder is no run."""
    curves = read_metrics(options.run / "metrics.jsonl")
    step = max(points[-1][0] for points in curves.values())
    charts = "".join(chart(title, lines) for title, lines in group_curves(curves).items())
    sections = {"Curves": f"<div class='grid'>{charts}</div>"}
    sections["Figures"] = _or_why(lambda: _figures(options.run / "evaluate.json"))
    sections["Errors by joint, and worst cases"] = _or_why(lambda: _people(options))
    return page(f"Training run {options.run.resolve().name}", f"{step:.0f} steps", sections)


def _or_why(make: Callable[[], str]) -> str:
    try:
        return make()
    except InputError as error:
        return f"<p class='quiet'>not measured: {html.escape(str(error))}</p>"


def _figures(path: Path) -> str:
    try:
        return figures_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"no table at {path}: python -m training.evaluate --out {path} makes it") from error


def _people(options: argparse.Namespace) -> str:
    checkpoint = options.run / "best.safetensors"
    topology = read_checkpoint_info(checkpoint).body()
    model = make_engine(checkpoint, "torch")
    subsets = hold_out(options.synthetic, options.data, options.limit)
    samples = [sample for subset in subsets.values() for sample in subset]
    found = predict(model, sample_crops(samples, model.image_size), len(samples))
    true = 1000 * np.stack([sample.joints for sample in samples if sample.joints is not None])
    predicted = 1000 * found.joints
    by_joint = {
        "MPJPE mm": per_joint(joint_errors(predicted, true), topology.joint_names),
        "PA-MPJPE mm": per_joint(joint_errors(procrustes(predicted, true), true), topology.joint_names),
    }
    errors, meshes = pa_mpjpe(predicted, true), true_meshes(samples, topology)
    cases, faces = [], topology.levels["coarse"].faces
    for row in np.argsort(-errors)[:WORST]:
        sample = samples[row]
        picture = draw_person(
            sample.image, sample.box, found.vertices[row], found.camera[row], faces, meshes[row]
        )
        cases.append(WorstCase(f"{sample.source}, {'clean' if sample.clean else 'hard'}", float(errors[row]), picture))
    people = f"{len(samples)} people of the synthetic hold-out; PA-MPJPE over all joints {errors.mean():.1f} mm."
    return (
        f"<p>{people}</p>{joints_table(by_joint)}<p class='quiet'>Worst by PA-MPJPE. Crop, prediction, prediction "
        f"from the right, truth from the right in the same scale.</p>{worst_cases(cases)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of train.py")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mocap/, coco_people/")
    parser.add_argument("--synthetic", type=Path, help="folder of the hold-out's shards, rendered there when absent")
    parser.add_argument("--limit", type=int, default=100, help="people of each subset (default: %(default)s)")
    options = parser.parse_args(arguments)
    out = options.run / "report.html"
    try:
        text = build(options)
        with replace_file(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except InputError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
