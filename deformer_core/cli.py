"""The `deformer` command. Heavy packages are imported by the subcommands, so that `--help` is instant."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deformer_core import __version__
from deformer_core.errors import InputError

if TYPE_CHECKING:
    from deformer_core.runtime.estimator import Estimator
    from deformer_core.runtime.media import Frame, Source
    from deformer_core.runtime.outputs import Outputs
    from deformer_core.runtime.person import Person

DONE, BAD_INPUT, INTERRUPTED = 0, 2, 130
ENGINES = ("auto", "onnxruntime", "torch", "compiled", "openvino", "tensorrt")
"""Of `runtime.engines`, which is not imported for `--help`."""
MIRRORED = "look at each person in a mirror too and take the mean: more exact, half as fast"
FrameEstimate = Callable[["Frame"], "list[Person]"]
Boxes = list[list[float]] | dict[str, list[list[float]]] | None
"""For every input, or by file name."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 all done, 2 some input was bad, 130 stopped by Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("deformer_core").setLevel(logging.INFO)
    try:
        code: int = arguments.command(arguments)
        return code
    except InputError as error:
        print(_sentence(error), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nStopped. Of the input in progress nothing was written.", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="deformer", description="3D human body meshes from RGB images.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="reconstruct everyone in photos, folders, videos or a webcam"))
    doctor = commands.add_parser("doctor", help="tell what is installed and which engine would run")
    doctor.set_defaults(command=_doctor)
    _add_bag(commands.add_parser("bag", help="add meshes to the images of a ROS 2 bag; needs no ROS"))
    _add_export(commands.add_parser("export", help="write a checkpoint as a graph for other runtimes"))
    _add_bench(commands.add_parser("bench", help="measure this machine: parts, engines, people per frame, memory"))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="photo, folder of photos, video, or webcam:0")
    add(
        "--save",
        default="overlay",
        help="overlay, side, skeleton, glb, npz; several with commas (default: overlay)",
    )
    add("--out", type=Path, default=Path("out"), help="folder to write to (default: out)")
    add(
        "--boxes",
        help="people's boxes in pixels: 'x0,y0,x1,y1;...' or a .json with a list, or lists by file name",
    )
    add("--intrinsics", help="fx,fy,cx,cy in pixels (default: a diagonal field of view of 55 degrees)")
    add(
        "--level",
        choices=["coarse", "middle", "full"],
        default="full",
        help="mesh resolution (default: full)",
    )
    add("--model", default="small", help="shipped weights by name, or a checkpoint file (default: small)")
    add("--engine", choices=ENGINES, default="auto")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--threads", type=int, help="processor threads (default: all)")
    add("--mirrored", action="store_true", help=MIRRORED)
    add("--score", type=float, default=0.4, help="smallest score of a detected person (default: 0.4)")
    add("--max-people", type=int, default=20, help="most people of one image (default: 20)")
    add("--smoothing", type=float, default=0.3, help="of videos over time, from 0 (off) to 1 (strong) (default: 0.3)")
    parser.set_defaults(command=_run)


def _add_bag(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", type=Path, metavar="IN", help="bag: a folder with metadata.yaml, or an .mcap or .db3 file")
    add("output", type=Path, metavar="OUT", help="bag to write: all of IN, and what the live node would publish")
    add("--image", action="append", required=True, metavar="TOPIC", help="images; once for each camera")
    add(
        "--camera-info",
        action="append",
        default=[],
        metavar="TOPIC",
        help="calibration, once for each camera (default: camera_info beside the images)",
    )
    add("--rectified", action="store_true", help="the images are undistorted (default: if their topic says 'rect')")
    add("--level", choices=["coarse", "middle", "full"], default="middle", help="mesh resolution (default: middle)")
    add("--model", default="small", help="shipped weights by name, or a checkpoint file (default: small)")
    add("--engine", choices=ENGINES, default="auto")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add("--threads", type=int, default=0, help="processor threads (default: all)")
    add("--mirrored", action="store_true", help=MIRRORED)
    add("--smoothing", type=float, default=0.3, help="over time, from 0 (off) to 1 (strong) (default: 0.3)")
    add("--batch", type=int, default=8, help="images worked through at once (default: 8)")
    add("--overwrite", action="store_true", help="replace OUT, and what a run with other options left unfinished")
    parser.set_defaults(command=_bag)


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", choices=["onnx", "tensorrt"], default="onnx", help="tensorrt: an engine for this machine's GPU")
    add("--out", type=Path, required=True, help="file to write")
    add("--model", default="small", help="shipped weights by name, or a checkpoint (default: small)")
    add(
        "--precision",
        choices=["float32", "float16", "bfloat16"],
        help="of the backbone (default: float32 in ONNX, float16 in TensorRT)",
    )
    parser.set_defaults(command=_export)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="run everything once, to see that it runs")
    add("--json", type=Path, metavar="FILE", help="write the table for programs, too")
    add("--model", default="small", help="shipped weights by name, or a checkpoint (default: small)")
    add("--threads", type=int, default=1, help="processor threads (default: 1)")
    parser.set_defaults(command=_bench)


def _bag(arguments: argparse.Namespace) -> int:
    from deformer_ros.bag import run

    return run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    boxes, intrinsics = _parse_boxes(arguments.boxes), _parse_intrinsics(arguments.intrinsics)
    kinds = arguments.save.split(",")
    from deformer_core.runtime.outputs import Outputs, check_kinds

    check_kinds(kinds)
    sources, bad = _find_all(arguments.inputs)
    total = len(sources) + bad
    if not sources:
        return BAD_INPUT
    estimator = _make_estimator(arguments, boxes)
    print(f"Engine: {estimator.engine.description}")
    with _progress_bar(sources) as progress:
        for source, stem in zip(sources, _output_names(sources)):
            estimate = partial(estimator, intrinsics=intrinsics, boxes=_boxes_of(boxes, source), level=arguments.level)
            try:
                with Outputs(kinds, source, stem, arguments.out, estimator.topology) as outputs:
                    found = _fill(outputs, source, _follow(source, estimate, arguments.smoothing), progress)
                    written = outputs.commit()
            except InputError as error:
                bad += 1
                progress.write(_sentence(error, source.name), file=sys.stderr)
            else:
                progress.write(f"{source.name}: {found} -> {', '.join(map(str, written))}", file=sys.stdout)
    print(f"{total - bad} of {total} inputs done" + (f", results in {arguments.out}/" if total > bad else ""))
    return BAD_INPUT if bad else DONE


def _follow(source: Source, estimate: Callable[..., list[Person]], smoothing: float) -> FrameEstimate:
    """`estimate` for one input's frames: in a video people keep their ids, hence colours, and move smoothly."""
    if not source.is_video:
        return lambda frame: estimate(frame.image)
    from deformer_core.runtime.smoothing import Smoother
    from deformer_core.runtime.tracker import Tracker, TrackState

    tracker, smoother = Tracker(), Smoother(smoothing)

    def followed(frame: Frame) -> list[Person]:
        tracks = smoother(tracker(estimate(frame.image), frame.time), frame.time)
        return [track.person for track in tracks if track.state != TrackState.LOST]

    return followed


def _fill(outputs: Outputs, source: Source, estimate: FrameEstimate, progress: Any) -> str:
    """Reconstruct every frame of one input. Returns what was found, in words; nobody at all is an `InputError`."""
    frames = most = 0
    for frame in source.frames():
        people = estimate(frame)
        outputs.add(frame, people)
        frames, most = frames + 1, max(most, len(people))
        progress.update()
    if not most:
        raise InputError(f"no person found in {source.name}: lower --score, or give --boxes")
    who = f"{most} person" if most == 1 else f"{most} people"
    return f"{frames} frames, up to {who}" if source.is_video else who


def _find_all(paths: list[str]) -> tuple[list[Source], int]:
    """The inputs that the arguments stand for, and how many arguments are none; those are told at once."""
    from deformer_core.runtime.media import find_sources

    sources: list[Source] = []
    bad = 0
    for path in paths:
        try:
            sources += find_sources(path)
        except InputError as error:
            bad += 1
            print(_sentence(error), file=sys.stderr)
    return sources, bad


def _make_estimator(arguments: argparse.Namespace, boxes: Boxes) -> Estimator:
    from deformer_core.runtime.estimator import Estimator

    detector = None
    if not isinstance(boxes, list):
        from deformer_core.runtime.detector import PersonDetector

        detect = PersonDetector(threads=arguments.threads)
        detector = partial(detect, score=arguments.score, max_people=arguments.max_people)
    return Estimator.from_pretrained(
        arguments.model, arguments.engine, arguments.device, detector, arguments.threads, arguments.mirrored
    )


def _progress_bar(sources: list[Source]) -> Any:
    """A bar over all frames, on a terminal only; without an end if a webcam is among the inputs."""
    from tqdm import tqdm

    counts = [source.count for source in sources]
    total = None if None in counts else sum(count for count in counts if count)
    return tqdm(total=total, unit="frame", disable=None)


def _output_names(sources: list[Source]) -> list[str]:
    """A different stem for every input: x, x_2, x_3 for inputs that share one."""
    names: list[str] = []
    for source in sources:
        name, number = source.stem, 2
        while name in names:
            name, number = f"{source.stem}_{number}", number + 1
        names.append(name)
    return names


def _parse_intrinsics(text: str | None) -> list[list[float]] | None:
    """A (3, 3) matrix from "fx,fy,cx,cy"."""
    if text is None:
        return None
    try:
        fx, fy, cx, cy = (float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"cannot read --intrinsics '{text}': give fx,fy,cx,cy in pixels") from error
    return [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]


def _parse_boxes(text: str | None) -> Boxes:
    """Boxes from "x0,y0,x1,y1;..." or from a JSON file."""
    if text is None:
        return None
    try:
        if text.endswith(".json"):
            content = json.loads(Path(text).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return {name: _floats(rows) for name, rows in content.items()}
            return _floats(content)
        return _floats([row.split(",") for row in text.split(";") if row.strip()])
    except OSError as error:
        raise InputError(f"cannot open the boxes {text} ({error.strerror}): check the path") from error
    except (ValueError, TypeError) as error:
        raise InputError(
            f"cannot read --boxes {text}: give 'x0,y0,x1,y1;...' in pixels, or a .json file with a list of such boxes "
            "or with one list for each file name"
        ) from error


def _floats(rows: list[Any]) -> list[list[float]]:
    """Rows of four numbers. Errors: `ValueError` or `TypeError` for anything else."""
    boxes = [[float(number) for number in row] for row in rows]
    if any(len(box) != 4 for box in boxes):
        raise ValueError("a box has four numbers")
    return boxes


def _boxes_of(boxes: Boxes, source: Source) -> list[list[float]] | None:
    """The boxes given for one input; None where the detector shall look."""
    if isinstance(boxes, dict):
        return boxes.get(source.name, boxes.get(Path(source.name).name))
    return boxes


def _sentence(error: InputError, name: str = "") -> str:
    """An error for the user, naming the input it is about."""
    text = str(error)
    return f"deformer: {text}" if name in text else f"deformer: {name}: {text}"


def _doctor(_: argparse.Namespace) -> int:
    from deformer_core.doctor import report

    for line in report():
        print(line)
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from deformer_core.runtime.exporting import export

    print("Exporting; this takes about a minute ...", flush=True)
    apart = export(arguments.model, arguments.out, arguments.format, arguments.precision)
    checked = "" if apart is None else f"; at most {apart * 1000:.2g} mm from torch on the shipped photo"
    print(f"Wrote {arguments.out} ({arguments.out.stat().st_size / 1e6:.1f} MB){checked}")
    return DONE


def _bench(arguments: argparse.Namespace) -> int:
    from deformer_core.files import replace_file
    from deformer_core.runtime.bench import HEADER, as_json, bench, line, machine

    rows = []
    print(", ".join(f"{key} {value}" for key, value in machine().items()), HEADER, sep="\n", flush=True)
    for row in bench(arguments.model, arguments.quick, arguments.threads):
        print(line(row), flush=True)
        rows.append(row)
    if arguments.json:
        with replace_file(arguments.json) as temporary:
            temporary.write_text(as_json(rows, arguments.model, arguments.threads), encoding="utf-8")
    return DONE
