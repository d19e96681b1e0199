"""Measure a checkpoint and the lifting baseline: prints a table and writes it as json.

    python training/evaluate.py [--checkpoint small] [--data ../shared/data]

Synthetic hold-out: 250 clean and 250 hard (truncated or occluded) renders of one seed, from motion-capture clips and
backgrounds that training never uses, made when absent. Real photos: PCK of the mesh's joints, and of the
backbone's own keypoints, on the validation split. What cannot be measured here says why.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.assets import load_body
from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import read_checkpoint_info
from deformer_core.data.keypoints2d import NUM_KEYPOINTS, LabelledPerson, read_people, read_photo
from deformer_core.data.rendered import RenderedSamples
from deformer_core.data.sample import Sample
from deformer_core.data.synthetic.dataset import SyntheticConfig
from deformer_core.data.synthetic.shards import render_shards
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.geometry.camera import CropWindow, Intrinsics, project_crop
from deformer_core.runtime.crops import cut_crop
from deformer_core.runtime.engines import ENGINES, Arrays, make_engine
from deformer_core.training.lifting import LiftingMLP, load_lifting
from deformer_core.training.metrics import evaluated_joints, pa_mpjpe, pck, summarize_3d
from deformer_core.training.progress import progress
from deformer_core.weights import weight_path

HOLD_OUT_SEED = 20260
HOLD_OUT_RENDERS = 700
"""Of which the first `PER_SUBSET` clean and hard ones are taken."""
PER_SUBSET = 250
BATCH = 16
MARGIN = 1.25
Row = dict[str, float]
Model = Callable[[NDArray[np.uint8], NDArray[np.float32]], Arrays]


@dataclass(frozen=True)
class Predictions:
    """box (N, 3); joints (N, J, 3), coarse vertices (N, V, 3), metres; uv (N, J, 2); keypoints (N, 17, 3)."""

    box: NDArray[np.float32]

    joints: NDArray[np.float32]
    vertices: NDArray[np.float32]
    uv: NDArray[np.float32]
    keypoints: NDArray[np.float32]


def predict(model: Model, crops: Iterable[tuple[NDArray[np.uint8], NDArray[np.float32]]], total: int) -> Predictions:
    """Run crops with their boxes through an engine, in batches."""
    parts: list[Predictions] = []
    with progress(0, total, "people") as bar:
        for images, box in _batches(crops):
            out = model(images, box)
            points = (torch.from_numpy(out["joints"]), torch.from_numpy(out["camera"]), torch.from_numpy(box))
            uv = project_crop(*points).numpy()
            parts.append(Predictions(box, out["joints"], out["vertices_coarse"], uv, out["keypoints"]))
            bar.update(len(box))
    return _join(parts)


def lift(model: LiftingMLP, found: Predictions) -> Predictions:
    """The baseline on the same crops and keypoints."""
    with torch.no_grad():
        where = torch.from_numpy(found.box)
        out = model(torch.from_numpy(found.keypoints), where)
        joints = model.regressor @ out["vertices_coarse"]
        uv = project_crop(joints, out["camera"], where)
    return Predictions(found.box, joints.numpy(), out["vertices_coarse"].numpy(), uv.numpy(), found.keypoints)


def _batches(
    crops: Iterable[tuple[NDArray[np.uint8], NDArray[np.float32]]],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    held: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
    for crop in crops:
        held.append(crop)
        if len(held) == BATCH:
            yield np.stack([image for image, _ in held]), np.stack([box for _, box in held])
            held = []
    if held:
        yield np.stack([image for image, _ in held]), np.stack([box for _, box in held])


def _join(parts: Sequence[Predictions]) -> Predictions:
    names = ("box", "joints", "vertices", "uv", "keypoints")
    return Predictions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def hold_out(folder: Path | None, data: Path, count: int) -> dict[str, list[Sample]]:
    """The clean and hard samples, rendered into `folder` when they are not there.

    Without a folder one under out/ is used, named for what is at hand to render with.
    """
    capture, people = data / "mocap", data / "coco_people" / "coco_people.json"
    config = SyntheticConfig(
        split="held_out",
        motion_capture=capture if capture.is_dir() else None,
        background_people=people if people.is_file() else None,
    )
    if folder is None:
        kinds = ("recorded" if config.motion_capture else "drawn", "photos" if config.background_people else "drawn")
        folder = Path("out") / f"hold_out_{kinds[0]}_poses_{kinds[1]}_backgrounds"
    if not list(folder.glob("shard_*.npz")) or len(RenderedSamples(folder)) < HOLD_OUT_RENDERS:
        with progress(0, HOLD_OUT_RENDERS, "images rendered") as bar:
            for rendered, _ in render_shards(folder, config, HOLD_OUT_SEED, 0, HOLD_OUT_RENDERS):
                bar.update(rendered)
    samples = RenderedSamples(folder)
    clean = np.array([samples[index].clean for index in range(len(samples))])
    subsets = {"synthetic_clean": np.flatnonzero(clean), "synthetic_hard": np.flatnonzero(~clean)}
    return {name: [samples[int(index)] for index in rows[:count]] for name, rows in subsets.items()}


def measure_3d(found: Predictions, samples: Sequence[Sample], vertices: NDArray, names: Sequence[str]) -> Row:
    """Table row in millimetres. vertices: (N, V, 3) true coarse meshes, metres."""
    joints = np.stack([sample.joints for sample in samples if sample.joints is not None])
    row = summarize_3d(1000 * found.joints, 1000 * joints, 1000 * found.vertices, 1000 * vertices, names)
    errors = pa_mpjpe(1000 * evaluated_joints(found.joints, names), 1000 * evaluated_joints(joints, names))
    return {"people": len(errors), **row, "pa_mpjpe_sem_mm": float(errors.std() / len(errors) ** 0.5)}


def true_meshes(samples: Sequence[Sample], topology: BodyTopology) -> NDArray[np.float32]:
    rotations = np.stack([sample.rotations for sample in samples if sample.rotations is not None])
    shapes = np.stack([sample.shape for sample in samples if sample.shape is not None])
    with torch.no_grad():
        return ParametricBody(topology)(torch.from_numpy(rotations), torch.from_numpy(shapes))["coarse"].numpy()


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The hold-out is rendered once; a model of another input size gets it averaged or interpolated."""
    import cv2

    if len(image) == size:
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def photo_crops(people: Sequence[LabelledPerson], size: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    for person in people:
        image = read_photo(person.photo)
        lens = Intrinsics.from_fov(image.shape[1], image.shape[0])
        window = CropWindow.from_bbox(person.box, MARGIN)
        yield cut_crop(image, window, lens, size), window.box(lens).astype(np.float32)


def measure_2d(uv: NDArray[np.float32], people: Sequence[LabelledPerson], prefix: str = "") -> Row:
    """PCK at 0.1 and 0.05 of the longer side of the person's box, over all labelled joints. uv: (N, 17, 2)."""
    windows = [CropWindow.from_bbox(person.box, MARGIN) for person in people]
    center = np.array([(window.center_x, window.center_y) for window in windows])[:, None]
    half = np.array([window.side / 2 for window in windows])[:, None, None]
    labels = np.stack([person.keypoints for person in people])
    side = np.array([person.side for person in people])
    pixels = uv * half + center
    figures = {"pck_0_1": 0.1, "pck_0_05": 0.05}
    return {prefix + name: pck(pixels, labels[..., :2], labels[..., 2], side, limit) for name, limit in figures.items()}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """All rows, nested as written: model, set, figure. Errors: `InputError` for a bad checkpoint."""
    info = read_checkpoint_info(options.checkpoint)
    topology = info.body()
    baseline: LiftingMLP | None = None
    rows: dict[str, Any] = {}
    try:
        baseline = load_lifting(options.lifting or weight_path("lifting.safetensors"), load_body())
        rows["lifting_baseline"] = {}
    except InputError as error:
        rows["lifting_baseline"] = f"not measured: {error}"

    try:
        subsets = hold_out(options.synthetic, options.data, options.limit or PER_SUBSET)
    except InputError as error:
        subsets = {}
        rows |= dict.fromkeys(("synthetic_clean", "synthetic_hard"), f"not measured: {error}")
    model = make_engine(options.checkpoint, options.engine)
    for name, samples in subsets.items():
        crops = ((resize(sample.image, model.image_size), sample.box) for sample in samples if sample.image is not None)
        found = predict(model, crops, len(samples))
        meshes = true_meshes(samples, topology)
        rows[name] = measure_3d(found, samples, meshes, topology.joint_names)
        if baseline is not None:
            lifted = lift(baseline, found)
            rows["lifting_baseline"][name] = measure_3d(lifted, samples, meshes, topology.joint_names)
            rows[name] |= paired(found, lifted, samples, topology.joint_names)
    try:
        people = read_people(options.coco or options.data / "coco_people" / "coco_people.json", "val")[: options.limit]
    except InputError as error:
        rows["coco_people"] = f"not measured: {error}"
    else:
        found = predict(model, photo_crops(people, model.image_size), len(people))
        teacher = measure_2d(found.keypoints[..., :2], people, "teacher_")
        rows["coco_people"] = {"people": len(people), **measure_2d(found.uv[:, :NUM_KEYPOINTS], people), **teacher}
        if baseline is not None:
            lifted = lift(baseline, found)
            rows["lifting_baseline"]["coco_people"] = measure_2d(lifted.uv[:, :NUM_KEYPOINTS], people)
    return {Path(str(options.checkpoint)).stem: rows}


def paired(found: Predictions, lifted: Predictions, samples: Sequence[Sample], names: Sequence[str]) -> Row:
    """PA-MPJPE minus the baseline's on the same people, with its standard error; below 0 the image helps."""
    joints = evaluated_joints(np.stack([s.joints for s in samples if s.joints is not None]), names)
    ours, theirs = (pa_mpjpe(evaluated_joints(found_by.joints, names), joints) for found_by in (found, lifted))
    difference = 1000 * (ours - theirs)
    return {
        "minus_lifting_mm": float(difference.mean()),
        "minus_lifting_sem_mm": float(difference.std() / len(difference) ** 0.5),
    }


def table(rows: dict[str, Any], title: str) -> str:
    """The nested figures as text, one line a set and one figure after the other."""
    lines = [title]
    for name, row in rows.items():
        if isinstance(row, str):
            lines.append(f"  {name:18} {row}")
        elif any(isinstance(value, dict) for value in row.values()):
            lines.append(table(row, f"  {name}"))
        else:
            lines.append(f"  {name:18} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="small", help="a name or a path (default: %(default)s)")
    parser.add_argument("--lifting", type=Path, help="the baseline's weights (default: the shipped ones)")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with mocap/, coco_people/")
    parser.add_argument("--synthetic", type=Path, help="folder of the hold-out's shards, rendered there when absent")
    parser.add_argument("--coco", type=Path, help="coco_people.json (default: under --data)")
    parser.add_argument("--limit", type=int, help="people of each set at most, for a quick look")
    parser.add_argument("--engine", choices=ENGINES, default="torch")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate.json"))
    options = parser.parse_args(arguments)
    try:
        figures = evaluate(options)
        with replace_file(options.out) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    except InputError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    for name, rows in figures.items():
        print(table(rows, name))
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
