"""`deformer bench`: what costs how much on this machine, in one table.

Times are medians of runs that take turns, after one run each to warm up; a machine that is busy for a while slows all
of them. Ratios are within a group: parts to the backbone in the same engine and batch, frames to one person,
formulations of attention to dense SDPA at the same size. What cannot be measured stays in the table, with the reason.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deformer_core.checkpoint import checkpoint_path, load_checkpoint, read_checkpoint_info
from deformer_core.runtime import bench_attention as attention
from deformer_core.runtime.bench_parts import PARTS, onnx_parts, torch_parts
from deformer_core.runtime.engines import ENGINES, Engine, choose_engine, graph_path, make_engine
from deformer_core.runtime.estimator import Estimator
from deformer_core.runtime.parity import demo_crops, demo_image

log = logging.getLogger(__name__)

PEOPLE = (1, 3, 8)
PASSES = ("forward", "forward and backward")
AGREEMENT = 1e-4
"""Largest difference of two formulations of attention."""


@dataclass(frozen=True)
class Effort:
    """How much to measure: each case, after a run to warm up, for so many seconds and rounds at least."""

    warm_up: bool
    rounds: int
    seconds: float
    batches: tuple[int, ...]
    sizes: tuple[int, ...]
    formulations: tuple[str, ...]


FULL = Effort(True, 3, 3.0, (1, 4, 16), attention.SIZES, attention.FORMULATIONS)
QUICK = Effort(False, 1, 0.0, (1, 4), attention.SIZES[:2], ("dense SDPA", "explicit dense", "tiles"))
"""Without FlexAttention, which compiles for half a minute."""


@dataclass(frozen=True)
class Row:
    """One line of the table. value is None where it was not measured, for the reason in `note`."""

    what: str
    how: str
    """Engine or formulation."""
    size: str
    value: float | None
    unit: str = "ms"
    ratio: float | None = None
    note: str = ""


def bench(model: str | Path = "small", quick: bool = False, threads: int = 1) -> Iterator[Row]:
    """Measure, row by row as they come. Errors: `InputError`, see `load_checkpoint`.

    model: shipped weights by name, or a checkpoint. quick: every row once, for the sake of running.
    """
    torch.set_num_threads(threads)
    effort = QUICK if quick else FULL
    engines, absent = _engines(model, threads)
    crops, box = demo_crops(next(iter(engines.values())).image_size)
    for batch in effort.batches:
        rows = np.arange(batch) % len(crops)
        yield from _parts(model, engines, crops[rows], box[rows], effort, threads)
    yield from _frames(model, engines, effort)
    for name in engines:
        yield Row("process, 4 people", name, "peak", _in_process("engine_memory", str(model), name, threads), "MB")
    yield from absent
    memory = _in_process("attention_memory", list(effort.sizes), list(effort.formulations))
    for queries in effort.sizes:
        yield from _attention(queries, effort, memory or {})


def machine() -> dict[str, str | int]:
    """What a result must be read with."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


HEADER = f"{'what':<47}{'how':<16}{'size':<15}{'median':<14}ratio"


def line(row: Row) -> str:
    """A row as a line of the table under `HEADER`."""
    value = "not measured" if row.value is None else f"{row.value:.4g} {row.unit}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return f"{row.what:<47}{row.how:<16}{row.size:<15}{value:<14}{row.note or ratio}".rstrip()


def as_json(rows: Sequence[Row], model: str, threads: int) -> str:
    """The same for programs."""
    record = {"machine": machine(), "model": model, "threads": threads, "rows": [asdict(row) for row in rows]}
    return json.dumps(record, indent=1)


def medians(cases: dict[str, Callable[[], object]], effort: Effort) -> dict[str, float]:
    """Median milliseconds of each case, the cases taking turns."""
    gpu = torch.cuda.is_available()
    times: dict[str, list[float]] = {name: [] for name in cases}
    if effort.warm_up:
        for case in cases.values():
            case()
    start, turn = time.monotonic(), 0
    while turn < effort.rounds or time.monotonic() - start < effort.seconds * len(cases):
        for name, case in cases.items():
            begin = time.perf_counter()
            case()
            if gpu:
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - begin) * 1000)
        turn += 1
    return {name: float(np.median(values)) for name, values in times.items()}


def _engines(model: str | Path, threads: int) -> tuple[dict[str, Engine], list[Row]]:
    """Those that can be had here, by name; and rows that tell why the others cannot."""
    engines, absent = {}, []
    for name in ENGINES[1:]:
        try:
            if name == "compiled" and choose_engine(model, name).device == "cpu":
                raise RuntimeError("measured on a GPU only: it is made for CUDA graphs")
            engines[name] = make_engine(model, name, threads=threads)
        except Exception as error:  # every package fails in its own way
            absent.append(Row("whole engine", name, "-", None, note=_reason(error)))
    return engines, absent


def _parts(
    model: str | Path,
    engines: dict[str, Engine],
    crops: NDArray[np.uint8],
    box: NDArray[np.float32],
    effort: Effort,
    threads: int,
) -> Iterator[Row]:
    """Each engine as a whole; torch and ONNX Runtime in parts too."""
    cases: dict[str, dict[str, Callable[[], object]]] = {name: {} for name in engines}
    device = choose_engine(model, "torch").device
    cases["torch"] = torch_parts(load_checkpoint(model, device), crops, box)
    if "onnxruntime" in engines:
        device = choose_engine(model, "onnxruntime").device
        cases["onnxruntime"] = onnx_parts(graph_path(checkpoint_path(model)), crops, box, threads, device)
    for name, engine in engines.items():
        cases[name]["whole engine"] = lambda engine=engine: engine(crops, box)  # type: ignore[misc]
    flat = {f"{name}/{part}": case for name, parts in cases.items() for part, case in parts.items()}
    found = medians(flat, effort)
    for part in (*PARTS, "whole engine"):
        for name in engines:
            value, base = found.get(f"{name}/{part}"), found.get(f"{name}/backbone")
            if value is not None:
                yield Row(part, name, f"batch {len(crops)}", value, ratio=value / base if base else None)


def _frames(model: str | Path, engines: dict[str, Engine], effort: Effort) -> Iterator[Row]:
    """From the image to the people in it, the detector included."""
    from deformer_core.runtime.detector import PersonDetector

    image = demo_image()
    detect, body = PersonDetector(threads=1), read_checkpoint_info(model).body()

    def frame(engine: Engine, people: int) -> Callable[[], object]:
        def repeated(image: NDArray[np.uint8]) -> tuple[NDArray, NDArray]:
            boxes, scores = detect(image)
            rows = np.arange(people) % len(boxes)
            return boxes[rows], scores[rows]

        estimator = Estimator(engine, body, repeated)
        return lambda: estimator(image)

    cases = {f"{name}/{people}": frame(engine, people) for name, engine in engines.items() for people in PEOPLE}
    found = medians(cases, effort)
    for name in engines:
        for people in PEOPLE:
            value = found[f"{name}/{people}"]
            size = f"{people} person" if people == 1 else f"{people} people"
            yield Row("frame to meshes", name, size, value, ratio=value / found[f"{name}/1"])


def _attention(queries: int, effort: Effort, memory: dict[str, float | None]) -> Iterator[Row]:
    """All formulations at one size, forward and with backward, times and then memory."""
    problem = attention.make_problem(queries, "cuda" if torch.cuda.is_available() else "cpu")
    attends, missing = {}, {}
    expected = attention.formulation(attention.REFERENCE, problem)(*problem.qkv)
    for name in effort.formulations:
        if reason := _too_large(name, queries):
            missing[name] = reason
            continue
        try:
            attend = attention.formulation(name, problem)
            with torch.no_grad():
                apart = float((attend(*problem.qkv) - expected).abs().max())
        except Exception as error:  # compilers and kernels fail in their own ways
            missing[name] = _reason(error)
            continue
        if not apart <= AGREEMENT:
            raise RuntimeError(f"{name} differs from dense attention by {apart:.1e} at {queries} queries")
        attends[name] = attend
    for kind, of in zip(PASSES, (attention.forward_of, attention.backward_of)):
        cases: dict[str, Callable[[], object]] = {}
        for name, attend in attends.items():
            try:
                cases[name] = of(attend, problem)
                cases[name]()
            except Exception as error:
                del cases[name]
                missing[f"{name}/{kind}"] = _reason(error)
        found = medians(cases, effort)
        for name in effort.formulations:
            value, note = found.get(name), missing.get(name) or missing.get(f"{name}/{kind}") or ""
            ratio = value / found[attention.REFERENCE] if value else None
            yield Row(f"attention, {kind}", name, f"{queries} queries", value, "ms", ratio, note)
        for name in effort.formulations:
            if value := memory.get(f"{queries}/{name}/{kind}"):
                yield Row(f"attention, {kind}, extra memory", name, f"{queries} queries", value, "MB")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"


def _too_large(name: str, queries: int) -> str:
    """Why the explicit form is left out; "" if it is not."""
    needed = attention.explicit_bytes(queries, backward=True)
    free = next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if "MemAvailable" in line), 2**34)
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
    return f"needs about {needed / 1e9:.0f} GB" if name == "explicit dense" and needed > free / 2 else ""


def engine_memory(model: str, engine: str, threads: int) -> float | None:
    """Peak memory of this process, MB, with an engine that has run on four crops. For a process of its own."""
    made = make_engine(model, engine, threads=threads)
    size = made.image_size
    made(np.zeros((4, size, size, 3), np.uint8), np.tile(np.array([[0, 0, 0.2]], np.float32), (4, 1)))
    return attention.peak_memory()


def attention_memory(sizes: list[int], formulations: list[str]) -> dict[str, float | None]:
    """Extra MB of each size, formulation and pass. For a process of its own; torch's compiler is left out."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, float | None] = {}
    for queries in sizes:
        problem = attention.make_problem(queries, device)
        for name in formulations:
            if name == "FlexAttention" or _too_large(name, queries):
                continue
            attend = attention.formulation(name, problem)
            for kind, of in zip(PASSES, (attention.forward_of, attention.backward_of)):
                found[f"{queries}/{name}/{kind}"] = attention.extra_memory(of(attend, problem), device)
    return found


def _in_process(function: str, *arguments: object) -> Any:
    """A function of this module, run by a process of its own that gives memory back at once; None if it fails."""
    code = (
        "import json, sys, logging; from deformer_core.runtime import bench; "
        "print(json.dumps(getattr(bench, sys.argv[1])(*json.loads(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, function, json.dumps(arguments)]
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    if done.returncode:
        log.warning("%s failed: %s", function, done.stderr.strip().splitlines()[-1:])
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
