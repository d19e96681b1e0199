"""Render training data: `python -m training.render --count 20000 --out DIR --seed 1`.

Writes shards of 500 samples (see `deformer_core.data.synthetic.shards`); a run that was stopped goes on where it
was. Needs `pip install 'deformer[train]'` and OpenGL through EGL.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import yaml
from tqdm import tqdm

from deformer_core.data.synthetic.dataset import SyntheticConfig, SyntheticDataset
from deformer_core.data.synthetic.shards import render_shards
from deformer_core.errors import InputError

CONFIG = Path(__file__).parent / "configs" / "synthetic.yaml"


def read_config(path: Path, overrides: dict[str, Any]) -> SyntheticConfig:
    """A config file with options laid over it. Errors: `InputError` names an unknown key."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not a readable configuration ({error}).") from error
    return _build(SyntheticConfig, values | overrides, str(path))


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{where} must be a mapping of {kind.__name__}'s fields.")
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    if unknown := set(values) - known:
        raise InputError(f"{where}: unknown key '{sorted(unknown)[0]}'; known are {', '.join(sorted(known))}.")
    built = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{where}: {name}")
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, str) and Path in getattr(hints[name], "__args__", ()):
            value = Path(value)
        built[name] = value
    return kind(**built)


def contact_sheet(config: SyntheticConfig, seed: int, start: int, columns: int = 8, rows: int = 4) -> np.ndarray:
    """(rows * S, columns * S, 3) RGB: samples with their joints, green where visible, red where not."""
    import cv2

    dataset = SyntheticDataset(config, seed)
    pictures = []
    for sample in dataset.iterate(start, start + columns * rows):
        picture = sample["image"].copy()
        pixels = (sample["joints_2d"] + 1) / 2 * config.image_size
        for pixel, visible in zip(pixels, sample["joints_visible"], strict=True):
            color = (0, 255, 0) if visible else (255, 0, 0)
            cv2.circle(picture, tuple(int(value) for value in pixel), 2, color, -1)
        pictures.append(picture)
    return np.vstack([np.hstack(pictures[row * columns : (row + 1) * columns]) for row in range(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="fields of SyntheticConfig (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the shards")
    parser.add_argument("--count", type=int, default=20000, help="samples (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="first index, a multiple of 500 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--sheet", type=Path, help="also write a picture of the first 32 samples with their joints")
    parser.add_argument("--motion-capture", type=Path, help="folder of recorded poses")
    parser.add_argument("--clothes", type=Path, help="folder or tar archive of MakeHuman's clothes and hair")
    parser.add_argument("--backgrounds", type=Path, help="folder of photos")
    parser.add_argument("--background-people", type=Path, help="COCO-people json of photos, in place of a folder")
    parser.add_argument("--split", choices=("train", "held_out"), help="of poses and backgrounds")
    arguments = parser.parse_args()
    names = ("motion_capture", "clothes", "backgrounds", "background_people", "split")
    overrides = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        run(arguments, read_config(arguments.config, overrides))
    except InputError as error:
        sys.exit(f"error: {error}")


def run(arguments: argparse.Namespace, config: SyntheticConfig) -> None:
    stop = arguments.start + arguments.count
    if arguments.out:
        with tqdm(total=arguments.count, unit=" images") as bar:
            shards = render_shards(arguments.out, config, arguments.seed, arguments.start, stop, arguments.processes)
            for count, rendered_now in shards:
                if not rendered_now:
                    bar.initial += count
                bar.update(count)
    if arguments.sheet:
        import cv2

        sheet = contact_sheet(config, arguments.seed, arguments.start)
        if not cv2.imwrite(str(arguments.sheet), np.ascontiguousarray(sheet[..., ::-1])):
            raise InputError(f"{arguments.sheet} could not be written; give the path of a .png or .jpg file.")


if __name__ == "__main__":
    main()
