"""See a dataset with its labels drawn, and how much of it is labelled.

    python -m training.inspect_data --reader spin --path 3dpw_test.npz --images 3DPW --out sheet.jpg
    python -m training.inspect_data "coco:person_keypoints_val2017.json?images=val2017" synthetic:out/renders --augment

Each tile is the crop that training takes. Bones between 2D labels: blue on the person's left, orange on the right, grey
in the middle. Rings: 3D joints as the camera sees them. A translucent body: the posed mesh, where the labels are of
the body that is trained. A white corner marks people whose camera is not known: 3D is then laid over the 2D labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.body.assets import load_body
from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation, crop
from deformer_core.data.readers import READERS, open_dataset
from deformer_core.data.sample import Sample, collate, pose_labels
from deformer_core.data.stream import Augmentation, draw_change, draw_gain
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.geometry.camera import project_crop
from deformer_core.training.pictures import SIZE, see
from deformer_core.training.progress import progress
from deformer_core.view.overlay import draw_overlay

Picture = NDArray[np.uint8]
COLORS = {"left_": (70, 150, 255), "right_": (255, 150, 40), "": (200, 200, 200)}
OPACITY = 0.45
FEWEST = 4
"""2D labels that lay 3D over them where the camera is not known."""


@dataclass(frozen=True)
class Shares:
    """What the people of a set have."""

    people: int
    counted: int
    shares: dict[str, float]
    """Of those counted: with 2D labels, 3D joints, a mesh of the body that is trained, a camera; 2D joints a person."""

    @classmethod
    def of(cls, people: Sequence[Annotation], topology: BodyTopology, most: int) -> Shares:
        """most: people counted, evenly over the set."""
        rows = []
        picks = spread(len(people), most)
        with progress(0, len(picks), "people") as bar:
            for index in picks:
                person = people[index]
                rows.append(
                    {
                        "2d": person.uv_weight.any(),
                        "3d": person.joints is not None,
                        "mesh": person.rotations is not None and person.body == topology.name,
                        "camera": person.translation is not None,
                        "joints": np.count_nonzero(person.uv_weight),
                    }
                )
                bar.update(1)
        return cls(len(people), len(rows), {name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


def spread(total: int, count: int) -> list[int]:
    """Indices evenly over a set."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()


def table(sets: dict[str, Shares]) -> str:
    width = max(len(name) for name in sets)
    lines = [f"{'set':{width}} {'people':>9} {'2D':>7} {'3D':>7} {'mesh':>7} {'camera':>7} {'2D joints':>10}"]
    for name, row in sets.items():
        shares = " ".join(f"{row.shares[key]:7.1%}" for key in ("2d", "3d", "mesh", "camera"))
        note = f"  (of {row.counted} looked at)" if row.counted < row.people else ""
        lines.append(f"{name:{width}} {row.people:9} {shares} {row.shares['joints']:10.1f}{note}")
    return "\n".join(lines)


def draw(sample: Sample, topology: BodyTopology, body: ParametricBody) -> Picture:
    """(SIZE, SIZE, 3): the crop with its labels."""
    assert sample.image is not None
    batch = pose_labels(collate([sample], topology), body)
    joints, weight = batch["joints"][0].numpy(), batch["joints_weight"][0].numpy()
    camera = sample.camera
    if camera is None and batch["has_3d"].item():
        camera = lay_over(joints, weight, sample)
    picture: Picture = sample.image
    if sample.rotations is not None and camera is not None:
        seen = see(batch["vertices_coarse"][0].numpy(), camera, sample.box)
        picture = draw_overlay(picture, [seen], topology.levels["coarse"].faces, OPACITY)
    picture = draw_bones(picture, sample, topology)
    if batch["has_3d"].item() and camera is not None:
        points = project_crop(batch["joints"], torch.from_numpy(camera)[None], batch["box"])[0].numpy()
        known = np.flatnonzero(weight > 0)
        draw_rings(picture, points[known], [_color(topology.joint_names[row]) for row in known])
    if sample.camera is None:
        picture[:8, :8] = 255
    picture[-1], picture[:, -1] = 90, 90
    return picture


def lay_over(joints: NDArray, weight: NDArray, sample: Sample) -> NDArray[np.float32] | None:
    """(3,) the weak-perspective camera that lays 3D joints over the 2D labels; None where too few are shared."""
    shared = (weight > 0) & (sample.uv_weight > 0)
    if shared.sum() < FEWEST:
        return None
    flat, uv = joints[shared, :2], sample.uv[shared]
    spreads = flat - flat.mean(0)
    scale = float((spreads * (uv - uv.mean(0))).sum() / (spreads**2).sum())
    if scale <= 0:
        return None  # upside down or mirrored: the labels contradict each other
    return np.array([scale, *(uv.mean(0) / scale - flat.mean(0))], np.float32)


def draw_bones(picture: Picture, sample: Sample, topology: BodyTopology) -> Picture:
    import cv2

    picture = picture.copy()
    points = ((sample.uv + 1) / 2 * SIZE).round().astype(int)
    for child, parent in enumerate(topology.joint_parents):
        if parent >= 0 and min(sample.uv_weight[[child, parent]]) > 0:
            color = _color(topology.joint_names[child])
            cv2.line(picture, points[child].tolist(), points[parent].tolist(), color, 1, cv2.LINE_AA)
    for row in np.flatnonzero(sample.uv_weight > 0):
        cv2.circle(picture, points[row].tolist(), 3, _color(topology.joint_names[row]), -1, cv2.LINE_AA)
    return picture


def draw_rings(picture: Picture, points: NDArray, colors: Sequence[tuple[int, int, int]]) -> None:
    """Into the picture. points: (N, 2) crop coordinates."""
    import cv2

    limit = 4 * SIZE  # OpenCV takes coordinates of 16 bits after its fixed-point shift
    for point, color in zip(np.clip((points + 1) / 2 * SIZE, -limit, limit).round().astype(int).tolist(), colors):
        cv2.circle(picture, point, 5, (255, 255, 255), 2, cv2.LINE_AA)
        cv2.circle(picture, point, 5, color, 1, cv2.LINE_AA)


def _color(joint: str) -> tuple[int, int, int]:
    return next(color for side, color in COLORS.items() if joint.startswith(side))


def sheet(tiles: Sequence[Picture]) -> Picture:
    """Tiles in rows, about as wide as high."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    rows = -(-len(tiles) // columns)
    empty = [np.zeros((SIZE, SIZE, 3), np.uint8)] * (rows * columns - len(tiles))
    grid = np.stack([*tiles, *empty]).reshape(rows, columns, SIZE, SIZE, 3)
    return grid.swapaxes(1, 2).reshape(rows * SIZE, columns * SIZE, 3)


def inspect(options: argparse.Namespace) -> str:
    """Writes the sheet and returns the table. Errors: `InputError`."""
    import cv2

    topology = load_body(options.body)
    body = ParametricBody(topology)
    specs: dict[str, Any] = {spec: spec for spec in options.sets}
    if options.reader or options.path:
        given = {name: getattr(options, name) for name in ("reader", "path", "images", "split")}
        specs[options.reader or "set"] = {name: value for name, value in given.items() if value is not None}
    if not specs:
        raise InputError("no dataset is given: give --reader and --path, or reader:path")
    if not cv2.haveImageWriter(str(options.out)):
        raise InputError(f"{options.out} is no picture's name: end --out in .jpg or .png")
    rng = np.random.default_rng(options.seed)
    augmentation = Augmentation()
    tiles, found = [], {}
    for name, spec in specs.items():
        people = open_dataset(spec, topology)
        if not len(people):
            raise InputError(f"{name} has nobody in it")
        found[name] = Shares.of(people, topology, options.most)
        for index in spread(len(people), max(1, options.count // len(specs))):
            change = draw_change(rng, augmentation) if options.augment else None
            sample = crop(people[index], topology, SIZE, change)
            assert sample.image is not None
            if options.augment:
                sample.image = draw_gain(rng, augmentation, sample.image)
            tiles.append(draw(sample, topology, body))
    with replace_file(options.out) as temporary:
        cv2.imwrite(str(temporary), sheet(tiles)[..., ::-1])
    return table(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="READER:PATH?OPTION=VALUE", help="datasets to look at")
    parser.add_argument("--reader", help=f"of one dataset: {', '.join(READERS)}")
    parser.add_argument("--path", help="its file or folder")
    parser.add_argument("--images", help="its folder of images, or a bag's image topic")
    parser.add_argument("--split", help="its part, for readers that have some")
    parser.add_argument("--count", type=int, default=16, help="people drawn (default: %(default)s)")
    parser.add_argument("--augment", action="store_true", help="draw crops as training changes them")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    parser.add_argument("--body", default="anny", help="the body that is trained (default: %(default)s)")
    parser.add_argument("--most", type=int, default=1000, help="people of a set counted (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/sheet.jpg"), help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        print(inspect(options))
    except InputError as error:
        print(f"inspect_data: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
