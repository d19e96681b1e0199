"""The person detector: drawn people and photos, extreme images, and its arithmetic against plain loops."""

import os
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from deformer_core.errors import InputError
from deformer_core.runtime.detector import STRIDES, PersonDetector, decode, pad, resize, suppress
from training.tools.convert_nanodet import MEAN_RGB, STD_RGB, convert
from training.tools.figure import BOX, CANVAS, draw_person
from training.tools.tfjs import read_graph, run_graph

ROOT = Path(__file__).parents[2]
PHOTOS = Path(os.environ.get("DEFORMER_SHARED", ROOT.parent / "shared")) / "data" / "photos_ccby"
PACKAGE = os.environ.get("DEFORMER_HUMAN_MODELS")
SEED = 21


@pytest.fixture(scope="module")
def detector() -> PersonDetector:
    return PersonDetector(threads=1)


def read_rgb(path: Path) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR_RGB))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    shared = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


@pytest.mark.parametrize("size", [64, 256, 900])
def test_a_drawn_person_is_found(detector: PersonDetector, size: int) -> None:
    boxes, scores = detector(draw_person(size))
    assert boxes.dtype == scores.dtype == np.float32
    assert boxes.shape == (1, 4) and scores[0] > 0.6
    assert overlap(boxes[0], np.array(BOX) * size / CANVAS) > 0.85


@pytest.mark.parametrize("axis", [0, 1], ids=["tall", "wide"])
def test_three_people_in_a_tall_or_wide_image(detector: PersonDetector, axis: int) -> None:
    boxes, scores = detector(np.concatenate([draw_person(200)] * 3, axis))
    assert len(boxes) == 3 and (np.diff(scores) <= 0).all()
    shift = np.array([[0, 200], [200, 0]][axis])
    drawn = [np.array(BOX) * 200 / CANVAS + np.tile(shift * place, 2) for place in range(3)]
    assert all(max(overlap(box, each) for box in boxes) > 0.8 for each in drawn)
    assert len(detector(np.concatenate([draw_person(200)] * 3, axis), max_people=2)[0]) == 2


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (31, 33), (416, 416)])
def test_nobody_in_noise_of_any_shape(detector: PersonDetector, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(SEED).integers(0, 256, (*shape, 3), np.uint8)
    boxes, scores = detector(noise)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


def test_boxes_stay_inside_the_image(detector: PersonDetector) -> None:
    cut = draw_person(400)[100:330, 150:260]
    boxes, _ = detector(cut, score=0.05, max_people=100)
    assert len(boxes)
    assert (
        (boxes[:, :2] >= 0).all()
        and (boxes[:, 2:] <= (110, 230)).all()
        and (boxes[:, 2:] > boxes[:, :2]).all()
    )


def test_photos(detector: PersonDetector) -> None:
    paths = sorted(PHOTOS.glob("*.jpg"))
    if not paths:
        pytest.skip(f"no photos in {PHOTOS}")
    found = [len(detector(read_rgb(path))[0]) for path in paths]
    assert np.mean(np.array(found) > 0) >= 0.9


def test_bad_input_is_refused(detector: PersonDetector, tmp_path: Path) -> None:
    for image in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            detector(image)
    with pytest.raises(InputError, match="absent"):
        PersonDetector(tmp_path / "absent.onnx")


def test_decoding_equals_a_loop_over_the_cells() -> None:
    random = np.random.default_rng(SEED)
    height, width, bins = 64, 96, 11
    cells = [(x, y, s) for s in STRIDES for y in range(height // s) for x in range(width // s)]
    predictions = random.normal(size=(len(cells), 1 + 4 * bins)) * 2
    boxes, scores = decode(predictions, (height, width), 0.7)
    expected = []
    for (x, y, stride), (logit, *sides) in zip(cells, predictions, strict=True):
        if 1 / (1 + np.exp(-logit)) < 0.7:
            continue
        weights = torch.tensor(sides).reshape(4, bins).softmax(1).numpy()
        left, top, right, bottom = (weights * np.arange(bins)).sum(1) * stride
        center_x, center_y = (x + 0.5) * stride, (y + 0.5) * stride
        expected.append((center_x - left, center_y - top, center_x + right, center_y + bottom))
    np.testing.assert_allclose(boxes, expected, rtol=1e-9)
    assert (scores >= 0.7).all()


def test_suppression_keeps_exactly_what_no_better_box_covers() -> None:
    random = np.random.default_rng(SEED)
    corners = random.uniform(0, 60, (80, 2))
    boxes = np.concatenate((corners, corners + random.uniform(10, 40, (80, 2))), 1)
    scores = random.uniform(size=80)
    kept = suppress(boxes, scores, 0.5)
    assert (np.diff(scores[kept]) <= 0).all()
    for index in range(80):
        better = [other for other in kept if scores[other] > scores[index]]
        assert (index in kept) == all(overlap(boxes[index], boxes[other]) <= 0.5 for other in better)


def test_resizing_keeps_the_proportions_and_padding_the_pixels() -> None:
    resized = resize(np.full((1080, 1920, 3), 200, np.uint8), 416)
    assert resized.shape == (234, 416, 3)
    padded = pad(resized)
    assert padded.shape == (256, 416, 3)
    assert (padded[:234] == resized).all() and (padded[234:] != 200).all()


@pytest.mark.skipif(not PACKAGE, reason="DEFORMER_HUMAN_MODELS names no npm package")
def test_parity_with_the_original_graph() -> None:
    pytest.importorskip("onnx")
    graph = read_graph(Path(PACKAGE or ""), "nanodet")
    session = onnxruntime.InferenceSession(
        convert(graph).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pictures = [draw_person(416)]
    for path in sorted(PHOTOS.glob("*.jpg"))[:3]:
        pictures.append(cv2.resize(read_rgb(path), (416, 416)))
    (source,) = (node.name for node in graph.nodes.values() if node.op == "Placeholder")
    outputs = ["Identity"] + [f"Identity_{index}" for index in range(1, 6)]
    for picture in pictures:
        normalised = ((picture - np.array(MEAN_RGB)) / np.array(STD_RGB))[..., ::-1].transpose(2, 0, 1)
        feed = torch.from_numpy(normalised.astype(np.float32))[None]
        original = run_graph(graph, {source: feed}, outputs)
        (ours,) = session.run(None, {"images": picture[None]})
        people = torch.cat(original[:3], 1)[0, :, 0].numpy()
        np.testing.assert_allclose(1 / (1 + np.exp(-ours[0, :, 0])), people, atol=1e-3)
        np.testing.assert_allclose(ours[0, :, 1:], torch.cat(original[3:], 1)[0].numpy(), atol=1e-3)
