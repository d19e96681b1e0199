"""Measure a checkpoint: prints a table and writes it as json.

    python -m training.evaluate [--checkpoint small] [--data ../shared/data]
    python -m training.evaluate --protocol 3dpw-metro --checkpoint mine.safetensors --dataset path=3DPW

Without --protocol, everything that needs no licence, and the lifting baseline beside it: the synthetic hold-out (250
clean and 250 hard, that is truncated or occluded, renders of one seed, made when absent), PCK on real photos, the
agreement of a mirrored image with its original, and a real recording by four calibrated cameras. What cannot be
measured here says why. With --protocol of a data set, `torchrun --nproc-per-node N -m training.evaluate ...` spreads
the people over processes; the figures are those of one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.assets import load_body
from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import read_checkpoint_info
from deformer_core.data.keypoints2d import NUM_KEYPOINTS, LabelledPerson, read_people, read_photo
from deformer_core.data.readers import open_dataset
from deformer_core.data.rendered import resize
from deformer_core.data.sample import Sample
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.geometry.camera import CropWindow, Intrinsics
from deformer_core.runtime.crops import cut_crop
from deformer_core.runtime.engines import ENGINES, Engine, make_engine
from deformer_core.training.figures import (
    MARGIN,
    Row,
    comparison,
    details,
    measure_2d,
    measure_3d,
    paired,
    table,
    true_meshes,
)
from deformer_core.training.held_out import PER_SUBSET, hold_out
from deformer_core.training.lifting import LiftingMLP, load_lifting
from deformer_core.training.multiview import REFERENCE
from deformer_core.training.predictions import Crop, Predictions, flip_error, lift, mirrored, predict, together
from deformer_core.training.processes import join_processes, leave_processes
from deformer_core.training.protocol_run import run_protocol
from deformer_core.training.protocols import PROTOCOLS, protocol
from deformer_core.training.scenarios import low_light, scenarios
from deformer_core.weights import weight_path
from training.four_views import measure_recording


def sample_crops(samples: Sequence[Sample], size: int) -> Iterator[Crop]:
    return ((resize(sample.image, size), sample.box) for sample in samples if sample.image is not None)


def photo_crops(people: Sequence[LabelledPerson], size: int) -> Iterator[Crop]:
    for person in people:
        image = read_photo(person.photo)
        lens = Intrinsics.from_fov(image.shape[1], image.shape[0])
        window = CropWindow.from_bbox(person.box, MARGIN)
        yield cut_crop(image, window, lens, size), window.box(lens).astype(np.float32)


class Evaluation:
    """A model on our own sets. `rows` holds the table, nested as written: set, figure."""

    def __init__(self, options: argparse.Namespace, model: Engine, topology: BodyTopology) -> None:
        self.options, self.model, self.topology = options, model, topology
        self.rows: dict[str, Any] = {}
        self.baseline: LiftingMLP | None = None
        if options.protocol is None:
            self.attempt(("lifting_baseline",), self.load_baseline)

    def attempt(self, names: Iterable[str], measure: Callable[[], None]) -> None:
        """Measure, or say in the rows of these names why not."""
        try:
            measure()
        except InputError as error:
            self.rows |= dict.fromkeys(names, f"not measured: {error}")

    def load_baseline(self) -> None:
        self.baseline = load_lifting(self.options.lifting or weight_path("lifting.safetensors"), load_body())
        self.rows["lifting_baseline"] = {}

    def synthetic(self) -> None:
        subsets = hold_out(self.options.synthetic, self.options.data, self.options.limit or PER_SUBSET)
        names = self.topology.joint_names
        everyone: list[Predictions] = []
        truth: list[NDArray[np.float32]] = []
        for name, samples in subsets.items():
            found = predict(self.model, sample_crops(samples, self.model.image_size), len(samples))
            meshes = true_meshes(samples, self.topology)
            everyone.append(found)
            truth.append(meshes)
            self.rows[name] = measure_3d(found, samples, meshes, names)
            if self.baseline is not None:
                lifted = lift(self.baseline, found)
                self.rows["lifting_baseline"][name] = measure_3d(lifted, samples, meshes, names)
                self.rows[name] |= paired(found, lifted, samples, names)
            if name == "synthetic_clean":
                self.flip("mm", found, sample_crops(samples, self.model.image_size))
        if everyone:
            self.scenarios(subsets, together(everyone), np.concatenate(truth))

    def scenarios(self, subsets: dict[str, list[Sample]], found: Predictions, meshes: NDArray[np.float32]) -> None:
        """The hold-out's people by situation, and the clean ones once more in the dark."""
        names = self.topology.joint_names
        samples = [sample for subset in subsets.values() for sample in subset]
        rows: dict[str, Row] = {}
        for name, mask in scenarios(samples, names).items():
            if mask.any():
                mine = np.flatnonzero(mask)
                rows[name] = measure_3d(found.of(mine), [samples[row] for row in mine], meshes[mine], names)
        clean = subsets["synthetic_clean"]
        rng = np.random.default_rng(0)
        dark = [replace(sample, image=low_light(sample.image, rng)) for sample in clean if sample.image is not None]
        in_the_dark = predict(self.model, sample_crops(dark, self.model.image_size), len(dark))
        rows["low_light"] = measure_3d(in_the_dark, dark, meshes[: len(dark)], names)
        self.rows["scenarios"] = rows

    def photos(self) -> None:
        path = self.options.coco or self.options.data / "coco_people" / "coco_people.json"
        people = read_people(path, "val")[: self.options.limit]
        found = predict(self.model, photo_crops(people, self.model.image_size), len(people))
        teacher = measure_2d(found.keypoints[..., :2], people, "teacher_")
        ours = measure_2d(found.uv[:, :NUM_KEYPOINTS], people)
        self.rows["coco_people"] = {"people": len(people), **ours, **teacher}
        if self.baseline is not None:
            lifted = lift(self.baseline, found)
            self.rows["lifting_baseline"]["coco_people"] = measure_2d(lifted.uv[:, :NUM_KEYPOINTS], people)
        self.flip("coco_mm", found, photo_crops(people, self.model.image_size))

    def flip(self, name: str, found: Predictions, crops: Iterator[Crop]) -> None:
        if self.options.protocol is not None:
            return
        other = predict(self.model, mirrored(crops), len(found.box))
        errors = flip_error(1000 * found.joints, 1000 * other.joints, self.topology.joint_mirror)
        self.rows.setdefault("flip", {})[name] = float(errors.mean())

    def recording(self) -> None:
        self.rows["pose2sim"] = measure_recording(
            self.model, self.topology, self.options.pose2sim, self.options.limit
        )

    def all(self) -> dict[str, Any]:
        self.attempt(("synthetic_clean", "synthetic_hard"), self.synthetic)
        self.attempt(("coco_people",), self.photos)
        self.attempt(("pose2sim",), self.recording)
        return self.rows


def evaluate(options: argparse.Namespace, checkpoint: str) -> dict[str, Any]:
    """All rows: {model: {set: {figure: value}}}. Errors: `InputError` for a bad checkpoint, protocol or data set."""
    topology = read_checkpoint_info(checkpoint).body()
    evaluation = Evaluation(options, make_engine(checkpoint, options.engine, mirrored=options.mirrored), topology)
    name = Path(checkpoint).stem
    if options.protocol is None:
        return {name: evaluation.all()}
    own = {"synthetic": evaluation.synthetic, "coco-2d": evaluation.photos, "pose2sim": evaluation.recording}
    if options.protocol in own:
        own[options.protocol]()
        return {name: evaluation.rows}
    chosen = protocol(options.protocol)
    specification = {**chosen.dataset, **dict(_entry(text) for text in options.dataset)}
    if "path" not in specification:
        raise InputError(f"protocol '{options.protocol}' needs --dataset path=...: {chosen.files}")
    people = open_dataset(specification, topology)[: options.limit]
    size = evaluation.model.image_size
    row = run_protocol(chosen, people, evaluation.model, size, topology, lambda gender: load_body(f"smpl_{gender}"))
    return {name: {options.protocol: row}}


def _entry(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--dataset entry '{text}' is not of the form key=value, as path=... or images=...")
    return key, value


def show(figures: dict[str, Any], name: str | None) -> None:
    for model, rows in figures.items():
        if name is None or name not in rows or not PROTOCOLS[name].dataset:
            print(table(rows, model))
            if isinstance(rows.get("pose2sim"), dict):
                print(f"  pose2sim is measured against joints {REFERENCE}")
            continue
        row: Row = {key: value for key, value in rows[name].items() if isinstance(value, float | int)}
        print(table({name: row}, model))
        for key, text in rows[name].items():
            if isinstance(text, str):
                print(f"  {key}: {text}")
        print(details(rows[name]))
        if PROTOCOLS[name].paper:
            print(comparison(row, model, PROTOCOLS[name].paper))


def main(arguments: Sequence[str] | None = None) -> int:
    listed = "\n".join(f"  {name:12} {entry.summary}" for name, entry in PROTOCOLS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"protocols:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", nargs="+", default=["small", "light"], help="names or paths (default: small light)"
    )
    parser.add_argument("--protocol", metavar="NAME", help="one of the protocols below")
    parser.add_argument("--dataset", nargs="+", default=[], metavar="KEY=VALUE", help="what the reader is given")
    parser.add_argument("--lifting", type=Path, help="the baseline's weights (default: the shipped ones)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mocap/, coco_people/")
    parser.add_argument("--synthetic", type=Path, help="folder of the hold-out's shards, rendered there when absent")
    parser.add_argument("--coco", type=Path, help="coco_people.json (default: under --data)")
    parser.add_argument("--pose2sim", type=Path, help="Demo_SinglePerson (default: of the installed package)")
    parser.add_argument("--limit", type=int, help="people of each set at most, for a quick look")
    parser.add_argument("--engine", choices=ENGINES, default="torch")
    parser.add_argument("--mirrored", action="store_true", help="of people and their mirror images, the mean")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate.json"))
    options = parser.parse_args(arguments)
    try:
        if options.protocol is not None:
            protocol(options.protocol)
        processes = join_processes("cpu")
        figures: dict[str, Any] = {}
        for checkpoint in options.checkpoint:
            figures |= evaluate(options, checkpoint)
        leave_processes()
        if processes.rank:
            return 0
        with replace_file(options.out) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except InputError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    show(figures, options.protocol)
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
