"""The synthetic hold-out: renders of one seed, of recordings and backgrounds that training never uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deformer_core.data.rendered import RenderedSamples
from deformer_core.data.sample import Sample
from deformer_core.data.synthetic.dataset import SyntheticConfig
from deformer_core.data.synthetic.shards import render_shards
from deformer_core.training.progress import progress

SEED = 20260
RENDERS = 700
"""Of which the first `PER_SUBSET` clean and hard ones are taken."""
PER_SUBSET = 250


def hold_out(folder: Path | None, data: Path, count: int = PER_SUBSET) -> dict[str, list[Sample]]:
    """The clean and hard samples, rendered into `folder` when they are not there.

    Without a folder one under out/ is used, named for what is at hand to render with. data: the folder that may hold
    mocap/ and coco_people/. Errors: `InputError` without OpenGL.
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
    if not list(folder.glob("shard_*.npz")) or len(RenderedSamples(folder)) < RENDERS:
        with progress(0, RENDERS, "images rendered") as bar:
            for rendered, _ in render_shards(folder, config, SEED, 0, RENDERS):
                bar.update(rendered)
    samples = RenderedSamples(folder)
    clean = np.array([samples[index].clean for index in range(len(samples))])
    subsets = {"synthetic_clean": np.flatnonzero(clean), "synthetic_hard": np.flatnonzero(~clean)}
    return {name: [samples[int(index)] for index in rows[:count]] for name, rows in subsets.items()}
