"""Rendered people: labels against pixels, and independence of order, process and neighbours."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.data.synthetic.appearance import Appearance
from deformer_core.data.synthetic.dataset import Record, SyntheticConfig, SyntheticDataset
from deformer_core.data.synthetic.poses import PoseConfig
from deformer_core.data.synthetic.renderer import Figure
from deformer_core.data.synthetic.shards import decode_images, read_shard, render_shards, shard_path
from deformer_core.errors import InputError
from deformer_core.geometry.camera import crop_rotation, full_translation, project_crop

SEED = 3
INDICES = (0, 7, 1, 12, 5)


@pytest.fixture(scope="module")
def dataset() -> SyntheticDataset:
    torch.set_num_threads(1)
    dataset = SyntheticDataset(SyntheticConfig(background_count=6), SEED)
    try:
        dataset.renderer  # noqa: B018 (makes the context)
    except InputError as error:
        pytest.skip(f"no off-screen OpenGL here: {error}")
    return dataset


@pytest.fixture(scope="module")
def samples(dataset: SyntheticDataset) -> list[Record]:
    return list(dataset.iterate(0, 48))


def assert_same(a: Record, b: Record) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def render_one(dataset: SyntheticDataset, index: int, queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    queue.put(dataset[index])


def test_a_sample_depends_on_seed_and_index_alone(dataset: SyntheticDataset, samples: list[Record]) -> None:
    for index in INDICES:
        assert_same(dataset[index], samples[index])
    other_seed = SyntheticDataset(dataset.config, SEED + 1)
    assert not np.array_equal(other_seed[0]["image"], samples[0]["image"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_renders_the_same_bits(dataset: SyntheticDataset, samples: list[Record], method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=render_one, args=(dataset, 7, queue))
    process.start()
    theirs = queue.get(timeout=60)
    process.join()
    assert_same(theirs, samples[7])


def test_shards_hold_the_same_samples(dataset: SyntheticDataset, samples: list[Record], tmp_path: Path) -> None:
    assert list(render_shards(tmp_path, dataset.config, SEED, 0, 4)) == [(4, True)]
    shard = read_shard(shard_path(tmp_path, 0))
    images = decode_images(shard)
    for index in range(4):
        assert_same({name: shard[name][index] for name in samples[0] if name != "image"}, without_image(samples[index]))
        # JPEG blurs noise of colour, not what is seen: compare means of 8 x 8 pixels.
        difference = images[index].astype(float) - samples[index]["image"]
        assert np.abs(difference.reshape(32, 8, 32, 8, 3).mean((1, 3))).mean() < 2


def without_image(sample: Record) -> Record:
    return {name: value for name, value in sample.items() if name != "image"}


def test_fields_are_finite_and_of_the_documented_shapes(dataset: SyntheticDataset, samples: list[Record]) -> None:
    bones = len(dataset.studio.body.topology.rig.bone_names)
    for sample in samples:
        assert sample["image"].shape == (256, 256, 3) and sample["image"].dtype == np.uint8
        assert sample["rotations"].shape == (bones, 3, 3)
        assert sample["vertices_coarse"].shape == (615, 3)
        assert sample["joints"].shape == (23, 3) and sample["joints_2d"].shape == (23, 2)
        for name, value in sample.items():
            assert np.isfinite(value).all(), name
        turns = sample["rotations"].astype(np.float64)
        assert np.allclose(turns @ turns.swapaxes(1, 2), np.eye(3), atol=1e-5)
        assert np.allclose(np.linalg.det(turns), 1, atol=1e-5)
        assert sample["joints_inside"][sample["joints_visible"]].all()


def test_labels_agree_with_the_full_camera(dataset: SyntheticDataset, samples: list[Record]) -> None:
    """Body parameters, pinhole projection and window against model space, `project_crop` and the crop."""
    for sample in samples:
        posed = dataset.studio.parametric(
            torch.from_numpy(sample["rotations"])[None], torch.from_numpy(sample["shape"])[None]
        )
        full = posed["coarse"][0].double().numpy() + sample["translation"]
        fx, fy, cx, cy = sample["intrinsics"].astype(np.float64)
        pixels = full[:, :2] / full[:, 2:] * [fx, fy] + [cx, cy]
        x, y, side = sample["window"].astype(np.float64)
        crop = (pixels - [x, y]) / side * 2

        box, camera = torch.from_numpy(sample["box"])[None], torch.from_numpy(sample["camera"])[None]
        vertices = torch.from_numpy(sample["vertices_coarse"])[None]
        projected = project_crop(vertices, camera, box)[0].numpy()
        assert np.abs(projected - crop).max() * 128 < 0.1, "pixels of the crop"
        assert np.allclose(full_translation(camera, box)[0].numpy(), sample["translation"], rtol=1e-4, atol=1e-4)
        hips = sample["joints"][[11, 12]].mean(0)
        assert np.abs(hips).max() < 1e-5


def test_the_mesh_is_drawn_where_its_labels_project(dataset: SyntheticDataset, samples: list[Record]) -> None:
    checked = 0
    for sample in samples:
        silhouette, uv = flat_silhouette(dataset, sample)
        if np.abs(uv).max() > 0.99:
            continue
        rows, columns = np.nonzero(silhouette > 0)
        pixels = (uv + 1) * 128
        low, high = pixels.min(0), pixels.max(0)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        expected = np.concatenate([low, high])
        # A pixel is drawn as soon as a quarter of it is covered, so the edges may be off by most of one pixel.
        assert np.abs(drawn - expected).max() < 1.0
        checked += 1
    assert checked > 15


def test_a_marker_is_drawn_at_half_a_pixel(dataset: SyntheticDataset) -> None:
    """A body shrunk to a dot, placed by a label: the dot's centre is where the label projects."""
    rng = np.random.default_rng(SEED)
    level = dataset.studio.body.level.vertices
    look = Appearance(offsets=np.zeros(len(level), np.float32))
    for _ in range(20):
        box = np.array([*rng.uniform(-0.6, 0.6, 2), rng.uniform(0.1, 0.8)], np.float32)
        camera = np.array([rng.uniform(0.7, 2), *rng.uniform(-0.1, 0.1, 2)], np.float32)
        marker = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
        tensors = [torch.from_numpy(value)[None] for value in (marker[None], camera, box)]
        expected = (project_crop(*tensors)[0, 0].numpy() + 1) * 128
        turn = crop_rotation(tensors[2])[0].numpy()
        place = full_translation(tensors[1], tensors[2])[0].numpy() + turn @ marker
        body = level - (level.max(0) + level.min(0)) / 2
        dot = (0.01 / camera[0] * body + place).astype(np.float32)
        mask = dataset.renderer.draw([Figure(dot, look, True)], box, {}, flat=True).subject.astype(np.float64)
        if not mask.any():
            continue
        at = (np.indices(mask.shape) + 0.5)[::-1] * mask
        assert np.abs(at.sum((1, 2)) / mask.sum() - expected).max() < 0.5


def flat_silhouette(dataset: SyntheticDataset, sample: Record) -> tuple[np.ndarray, np.ndarray]:
    """The body without clothes in white, and the full mesh's vertices projected by the labels."""
    posed = dataset.studio.parametric(
        torch.from_numpy(sample["rotations"])[None], torch.from_numpy(sample["shape"])[None]
    )["dressed"]
    look = Appearance(offsets=np.zeros(posed.shape[1], np.float32))
    figure = Figure(posed[0].numpy() + sample["translation"], look, True)
    drawn = dataset.renderer.draw([figure], sample["box"], {}, flat=True).subject
    box, camera = torch.from_numpy(sample["box"])[None], torch.from_numpy(sample["camera"])[None]
    model = posed[:, : dataset.studio.body.n_body] @ crop_rotation(box)
    return drawn, project_crop(model, camera, box)[0].numpy()


def test_clean_samples_show_every_joint(samples: list[Record]) -> None:
    clean = [sample for sample in samples if sample["clean"]]
    assert 0.3 < len(clean) / len(samples) < 0.75
    for sample in clean:
        assert np.abs(sample["joints_2d"]).max() <= 1
        assert sample["joints_inside"].all()
        assert not sample["truncated"] and not sample["occluded"]


def test_shares_of_the_configuration_are_kept(dataset: SyntheticDataset) -> None:
    config = dataset.config
    plain = replace(
        config,
        companions=0.0,
        pose=PoseConfig(stand=1, sit=0, crouch=0, lie=0, wild=0, recorded=0),
        scene=replace(config.scene, truncated=0.0),
        post=replace(config.post, occluded=0.0),
    )
    samples = list(SyntheticDataset(plain, SEED).iterate(0, 12))
    assert not any(sample["occluded"] for sample in samples)
    assert sum(bool(sample["clean"]) for sample in samples) >= 10
    upright = [sample["rotations"][0, 1, 1] for sample in samples]
    assert np.median(upright) > 0.85
