"""Run a frozen backbone once over rendered shards or labelled photos and keep what it makes of them.

    python training/cache_features.py --rendered DIR --out DIR
    python training/cache_features.py --coco coco_people.json --split train --views 4 --out DIR

A run that was stopped goes on where it was; with shards added to DIR since, give --count for the final number.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deformer_core.body.assets import load_body
from deformer_core.checkpoint import load_checkpoint
from deformer_core.data.features import FeatureWriter, weights_digest
from deformer_core.data.keypoints2d import KeypointPhotos, read_people
from deformer_core.data.rendered import RenderedSamples
from deformer_core.data.sample import Sample
from deformer_core.errors import InputError
from deformer_core.nn.backbones import BACKBONES, Backbone, BackboneOutput, build_backbone
from deformer_core.training.progress import progress
from deformer_core.training.sources import prefetch

RUNNERS = ("cuda", "onnxruntime", "openvino", "torch")
TOLERANCE = 1e-2
Runner = Callable[[Tensor], BackboneOutput]


class Samples(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


class Flat(nn.Module):
    """A backbone that takes uint8 NHWC crops and returns a plain tuple, as graph runners want it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self.backbone(images.permute(0, 3, 1, 2).float())
        return (*output.maps, output.pooled, output.keypoints)


def unflatten(tensors: Sequence[Tensor]) -> BackboneOutput:
    first, second, third, fourth, pooled, keypoints = tensors
    return BackboneOutput((first, second, third, fourth), pooled, keypoints)


def build_runner(name: str, backbone: Backbone, batch_size: int) -> Runner:
    """The backbone as run by `name`, always on whole batches of uint8 crops (B, S, S, 3). Errors: ImportError."""
    flat = Flat(backbone).eval()
    example = torch.zeros(batch_size, backbone.image_size, backbone.image_size, 3, dtype=torch.uint8)
    if name == "openvino":
        import openvino as ov

        graph = ov.convert_model(flat, example_input=example, input=[(list(example.shape), ov.Type.u8)])
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = ov.compile_model(graph, "CPU", options)
        return lambda images: unflatten([torch.from_numpy(v.copy()) for v in compiled(images.numpy()).values()])
    if name == "onnxruntime":
        import io

        import onnx
        import onnxruntime

        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own tracing
            program = torch.onnx.export(flat, (example,), dynamo=True, opset_version=18, verbose=False)
        assert program is not None
        onnx.save(program.model_proto, file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
        key = session.get_inputs()[0].name
        return lambda images: unflatten([torch.from_numpy(v) for v in session.run(None, {key: images.numpy()})])
    device = torch.device("cuda" if name == "cuda" else "cpu")
    flat.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(images: Tensor) -> BackboneOutput:
        with torch.inference_mode():
            return unflatten([tensor.contiguous().cpu() for tensor in flat(images.to(device))])

    return run


def choose_runner(name: str, backbone: Backbone, images: Tensor) -> tuple[str, Runner]:
    """The named runner, or with "auto" the first of `RUNNERS` that is installed and agrees with torch on `images`."""
    expected = build_runner("torch", backbone, len(images))(images)
    for candidate in RUNNERS if name == "auto" else (name,):
        if candidate == "cuda" and not torch.cuda.is_available():
            continue
        try:
            runner = build_runner(candidate, backbone, len(images))
        except ImportError:
            continue
        difference = disagreement(runner(images), expected)
        if difference <= TOLERANCE:
            return candidate, runner
        print(f"{candidate} differs from torch by {difference:.1e} of the maps' size: not used", file=sys.stderr)
    raise InputError(f"runner '{name}' is not installed or does not agree with torch: leave --runner out.")


def disagreement(found: BackboneOutput, expected: BackboneOutput) -> float:
    """Largest relative error of a map or the global vector, in the L2 norm."""
    pairs = zip((*found.maps, found.pooled), (*expected.maps, expected.pooled), strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)


def batches_of(samples: Samples, start: int, stop: int, size: int) -> Iterator[tuple[list[Sample], Tensor]]:
    """Whole batches in order, read ahead by a thread; the last one's images are padded by repetition."""

    def read(number: int) -> Any:
        first = start + number * size
        rows = [samples[index] for index in range(first, min(first + size, stop))]
        padded = rows + [rows[-1]] * (size - len(rows))
        return rows, torch.from_numpy(np.stack([row.image for row in padded if row.image is not None]))

    yield from prefetch(read, 0, -(-(stop - start) // size))  # type: ignore[misc]


def open_samples(options: argparse.Namespace, size: int) -> tuple[Samples, str]:
    """What to run over, and a name for it that a resumed run must share."""
    if options.rendered:
        return RenderedSamples(options.rendered, size), f"rendered:{options.rendered.name}"
    topology = load_body()
    people = read_people(options.coco, options.split)
    return KeypointPhotos(people, topology, size, options.views), f"{options.coco.stem}:{options.split}:{options.views}"


def open_backbone(name: str) -> Backbone:
    """By its name in `BACKBONES`, as published, or that of a trained checkpoint, as it has become."""
    if name in BACKBONES:
        return build_backbone(name, pretrained=True).eval()
    return load_checkpoint(name).backbone.eval()


def cache(options: argparse.Namespace) -> None:
    backbone = open_backbone(options.backbone)
    samples, name = open_samples(options, backbone.image_size)
    total = options.count or len(samples)
    topology = load_body()
    identity = {"weights": weights_digest(backbone), "body": topology.content_hash, "samples": name}
    writer = FeatureWriter(options.out, total, topology, identity)
    stop = min(total, len(samples))
    if writer.done >= stop:
        print(f"{options.out}: {writer.done} of {total} done")
        return
    runner: Runner | None = None
    with progress(writer.done, total, "images") as bar:
        for rows, images in batches_of(samples, writer.done, stop, options.batch_size):
            if runner is None:
                kind, runner = choose_runner(options.runner, backbone, images)
                bar.set_description(kind)
            features = runner(images)
            count = len(rows)
            maps = tuple(tensor[:count] for tensor in features.maps)
            writer.append(BackboneOutput(maps, features.pooled[:count], features.keypoints[:count]), rows)  # type: ignore[arg-type]
            bar.update(count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--rendered", type=Path, help="folder of shards")
    source.add_argument("--coco", type=Path, help="coco_people.json")
    parser.add_argument("--split", default="train", help="of the photos: train or val (default: %(default)s)")
    parser.add_argument("--views", type=int, default=2, help="crops a person: plain, mirrored, then changed ones (2)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the features")
    parser.add_argument("--count", type=int, help="people the folder is made for, when not all are rendered yet")
    which = f"one of {', '.join(BACKBONES)}, or a checkpoint with one that was trained (default: %(default)s)"
    parser.add_argument("--backbone", default="movenet_thunder", metavar="NAME_OR_FILE", help=which)
    parser.add_argument("--runner", choices=("auto", *RUNNERS), default="auto")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        cache(options)
    except InputError as error:
        print(f"cache_features: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
