"""How fast training loads and steps here, and what memory it takes: ratios in one run.

    python -m training.bench

| ratio | what |
|---|---|
| loading / step | images/s of the stream alone over those of the small model's step alone; above 1, loading keeps up |
| sparse / dense attention | peak memory of a step with all full-level queries, by the execution of the same attention |
| checkpointing on / off | memory and time of that step, and of the small model's |

The pictures are pieces of the shipped photo, packed as `pack.py` packs any data set, the bodies drawn. Each figure is a
process of its own, which trains from the same configuration as `train.py` and uses the GPU if there is one. Memory is
what the model, a batch and the steps take at most. Written to --out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deformer_core.body.assets import load_body
from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.keypoints2d import read_photo
from deformer_core.data.packed import pack
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.geometry.camera import Intrinsics
from deformer_core.training.loop import Trainer
from deformer_core.training.memory import PeakMemory
from deformer_core.training.sources import to_device
from training import train

PHOTO = Path(__file__).parents[1] / "deformer_core" / "data" / "demo" / "people.jpg"
CONFIG = Path(__file__).parent / "configs" / "small.yaml"
PEOPLE = 256
SMALL = ("batch_size=32",)
DENSE = ("network.query_level=full", "loss.vertices_middle=0", "batch_size=1")
WARM = 10
"""Batches loaded before the time is taken."""
KEPT_UP = 1.5
"""What loading / step should be at least."""
STEPS = {"small": ("step", 4, SMALL), "small, checkpointing": ("step", 4, (*SMALL, "network.checkpointing=true"))}
MEASURED: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "loading": ("load", 60, SMALL),
    **STEPS,
    "dense queries, sparse attention": ("step", 1, (*DENSE, "network.attention=tiles")),
    "dense queries, sparse attention, checkpointing": (
        "step", 1, (*DENSE, "network.attention=tiles", "network.checkpointing=true"),
    ),
    "dense queries, dense attention": ("step", 1, (*DENSE, "network.attention=dense")),
}  # fmt: skip
"""By name: what is timed, how many of it after one that is not, and overrides of the configuration."""
RATIOS = {
    "loading over step, images/s": ("images_per_s", "loading", "small"),
    "sparse over dense attention, memory": (
        "memory_mb", "dense queries, sparse attention", "dense queries, dense attention",
    ),
    "sparse over dense attention, time": (
        "seconds", "dense queries, sparse attention", "dense queries, dense attention",
    ),
    "checkpointing on over off, small, memory": ("memory_mb", "small, checkpointing", "small"),
    "checkpointing on over off, small, time": ("seconds", "small, checkpointing", "small"),
    "checkpointing on over off, dense queries, memory": (
        "memory_mb", "dense queries, sparse attention, checkpointing", "dense queries, sparse attention",
    ),
    "checkpointing on over off, dense queries, time": (
        "seconds", "dense queries, sparse attention, checkpointing", "dense queries, sparse attention",
    ),
}  # fmt: skip


class PhotoPieces(Sequence[Annotation]):
    """People with drawn bodies, each on some square of the shipped photo."""

    def __init__(self, topology: BodyTopology) -> None:
        rng = np.random.default_rng(0)
        self.image = read_photo(PHOTO)
        self.rotations, self.shape, _ = PoseSampler(topology).sample(rng, PEOPLE)
        with torch.no_grad():
            body = ParametricBody(topology)
            self.joints = body(torch.from_numpy(self.rotations), torch.from_numpy(self.shape))["joints"].numpy()
        height, width = self.image.shape[:2]
        self.lens = Intrinsics.from_fov(width, height)
        self.places = rng.uniform((0.2 * width, 0.3 * height, 200), (0.8 * width, 0.7 * height, 500), (PEOPLE, 3))

    def __len__(self) -> int:
        return PEOPLE

    def __getitem__(self, index: Any) -> Any:
        x, y, side = self.places[index].tolist()
        depth = 2 * self.lens.fx / side  # a person of nearly 2 m fills the square
        place = np.array([(x - self.lens.cx) / self.lens.fx, (y - self.lens.cy) / self.lens.fy, 1]) * depth
        seen = self.joints[index] + place
        uv = seen[:, :2] / seen[:, 2:] * [self.lens.fx, self.lens.fy] + [self.lens.cx, self.lens.cy]
        return Annotation(
            source=f"photo:{index}",
            load_image=lambda: self.image,
            center=(x, y),
            side=side,
            intrinsics=self.lens,
            uv=uv.astype(np.float32),
            uv_weight=np.ones(len(uv), np.float32),
            joints=self.joints[index],
            body="anny",
            rotations=self.rotations[index],
            shape=self.shape[index],
            translation=place.astype(np.float32),
        )


def measure(kind: str, count: int, overrides: Sequence[str], packed: Path, workers: int) -> dict[str, float]:
    """Images/s, seconds and memory of batches loaded ("load"), or of steps on a batch at hand ("step")."""
    options = train.parse(["--config", str(CONFIG), "--out", str(packed / "none")])
    options.overrides = [*only_packed(packed, workers), *overrides]
    if kind == "load":
        trainer = train.prepare(options)
        seconds = _time_loading(trainer, count)
        return {"images_per_s": trainer.config.batch_size / seconds, "seconds": seconds}
    with PeakMemory(torch.device("cuda" if torch.cuda.is_available() else "cpu")) as memory:
        trainer = train.prepare(options)
        seconds = _time_steps(trainer, count)
    return {"images_per_s": trainer.config.batch_size / seconds, "seconds": seconds, "memory_mb": memory.peak}


def only_packed(packed: Path, workers: int) -> list[str]:
    """Overrides that leave a configuration no people but packed ones."""
    streams = f"streams={{fraction: 1.0, workers: {workers}, sets: [{{path: {packed}}}]}}"
    return ["poses={fraction: 0}", "rendered={fraction: 0}", "real={fraction: 0}", streams, "validation.poses=0"]


def _time_loading(trainer: Trainer, count: int) -> float:
    """Seconds a batch."""
    turns = trainer.mixture.turns(0, WARM + count)
    for _ in islice(turns, WARM):
        pass  # workers start, and what they made ahead meanwhile is used up
    start = time.perf_counter()
    for _ in turns:
        pass
    return (time.perf_counter() - start) / count


def _time_steps(trainer: Trainer, count: int) -> float:
    """Seconds a step, after one that is not counted."""
    batch = to_device(trainer.mixture(0), trainer.processes.device)
    trainer.task.train()
    start = 0.0
    for step in range(1 + count):
        total = trainer.engine(batch)["total"]
        trainer.engine.backward(total)
        trainer.engine.step(1e-4)
        if trainer.processes.device.type == "cuda":
            torch.cuda.synchronize()
        if step == 0:
            start = time.perf_counter()
    return (time.perf_counter() - start) / count


def run(name: str, options: argparse.Namespace) -> dict[str, float]:
    """`measure` in a process of its own. Errors: `InputError` with its last line."""
    command = [sys.executable, "-m", "training.bench", "--out", str(options.out), "--measure", name]
    done = subprocess.run([*command, "--workers", str(options.workers)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"'{name}' could not be measured: {lines[-1]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench_train.json"))
    parser.add_argument("--workers", type=int, default=2, help="loading processes (default: %(default)s)")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)  # what a process of its own does
    options = parser.parse_args(arguments)
    packed = options.out.parent / "bench_people"
    try:
        if options.measure:
            print(json.dumps(measure(*MEASURED[options.measure], packed, options.workers)))
            return 0
        topology = load_body()
        for _ in pack(PhotoPieces(topology), packed, topology, {"dataset": PHOTO.name}, 64):
            pass
        rows = {}
        for name in MEASURED:
            rows[name] = run(name, options)
            print(f"{name:48} " + "  ".join(f"{key} {value:.3g}" for key, value in rows[name].items()), flush=True)
        ratios = {name: rows[over][key] / rows[under][key] for name, (key, over, under) in RATIOS.items()}
        with replace_file(options.out) as temporary:
            temporary.write_text(json.dumps({"measured": rows, "ratios": ratios}, indent=1) + "\n", encoding="utf-8")
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    for name, ratio in ratios.items():
        print(f"{name:52} {ratio:.2f}")
    enough = ratios["loading over step, images/s"] >= KEPT_UP
    print(f"loading {'keeps up' if enough else 'does not keep up: give it more --workers'} (at least {KEPT_UP} wanted)")
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
