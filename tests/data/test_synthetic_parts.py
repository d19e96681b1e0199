"""Parts of the renderer that need no OpenGL: scenes, backgrounds, garments, shards and their script."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from deformer_core.body.assets import load_body
from deformer_core.data.synthetic import post
from deformer_core.data.synthetic.appearance import sample_appearance
from deformer_core.data.synthetic.backgrounds import BackgroundBank, is_held_out
from deformer_core.data.synthetic.garments import dress
from deformer_core.data.synthetic.renderer import NormalField
from deformer_core.data.synthetic.scene import MIN_DEPTH, SceneConfig, project, sample_scene
from deformer_core.data.synthetic.shards import decode_images, read_shard, render_shards, shard_path, write_shard
from deformer_core.errors import InputError
from training.render import CONFIG, read_config

SEED = 5


def test_scenes_keep_bodies_before_the_lens_and_in_the_picture() -> None:
    vertices = load_body().levels["coarse"].vertices
    rng = np.random.default_rng(SEED)
    cuts = []
    for _ in range(200):
        scene = sample_scene(rng, SceneConfig(), vertices)
        points = vertices @ scene.view.T + scene.translation
        assert points[:, 2].min() > 0.95 * MIN_DEPTH
        assert np.allclose(scene.view @ scene.view.T, np.eye(3), atol=1e-9)
        uv = project(points, scene.intrinsics)
        cuts.append(scene.cut)
        if scene.cut == "none":
            assert (uv > -1).all() and (uv < [scene.intrinsics.width + 1, scene.intrinsics.height + 1]).all()
            center = [scene.window.center_x, scene.window.center_y]
            reach = np.abs(uv - center).max() / scene.window.side
            assert 0.3 < reach < 0.62
    assert 0.15 < np.mean([cut != "none" for cut in cuts]) < 0.35


def test_drawn_backgrounds_repeat_and_splits_differ() -> None:
    first, again = BackgroundBank(count=4), BackgroundBank(count=4)
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.images, BackgroundBank(count=4, split="held_out").images)
    assert first.images.shape == (4, 256, 256, 3)


def test_photos_are_cut_by_name_and_around_people(tmp_path: Path) -> None:
    rng = np.random.default_rng(SEED)
    entries = []
    for number in range(40):
        photo = rng.integers(0, 200, (200, 300, 3), dtype=np.uint8)
        photo[:, :80] = 255  # where the person is
        cv2.imwrite(str(tmp_path / f"{number}.png"), photo)
        people = [{"bbox_xywh": [0, 0, 80, 200]}]
        entries.append({"file": f"{number}.png", "our_split": "train", "people": people})
    listing = tmp_path / "people.json"
    listing.write_text(json.dumps(entries))
    train = BackgroundBank(people=listing, count=30, size=64)
    held_out = BackgroundBank(people=listing, count=30, size=64, split="held_out")
    assert not set(train.ids) & set(held_out.ids)
    assert all(is_held_out(name) for name in held_out.ids)
    assert ((train.images == 255).all(3).mean((1, 2)) < 0.06).all()
    with pytest.raises(InputError, match="split"):
        BackgroundBank(split="test")
    with pytest.raises(InputError, match="No background photos"):
        BackgroundBank(folder=tmp_path / "none")


def test_loose_pieces_ride_on_the_body() -> None:
    body = dress(load_body())
    level, full = body.level, body.topology.levels["full"]
    assert np.array_equal(level.vertices[: body.n_body], full.vertices)
    assert np.allclose(level.skin_weights.sum(1), 1, atol=1e-5)
    assert level.shape_basis.shape[1] == len(level.vertices) == len(body.arm)
    for faces in body.faces.values():
        assert faces.min() >= 0 and faces.max() < len(level.vertices)
    wrists = full.joint_regressor.apply(full.vertices)[[9, 10]]
    for wrist in wrists:
        nearest = np.linalg.norm(full.vertices - wrist, axis=1).argsort()[:20]
        assert np.abs(body.arm[nearest] - 2).max() < 0.35


def test_normals_agree_with_a_sphere() -> None:
    from scipy.spatial import ConvexHull

    rng = np.random.default_rng(SEED)
    points = rng.normal(size=(2000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    hull = ConvexHull(points)
    a, b, c = (points[hull.simplices[:, i]] for i in range(3))
    inward = ((np.cross(b - a, c - a) * a).sum(1) < 0)[:, None]
    faces = np.where(inward, hull.simplices[:, ::-1], hull.simplices).astype(np.int32)
    normals = NormalField(faces, len(points))(points.astype(np.float32))
    assert (normals * points).sum(1).min() > 0.99


def test_appearances_keep_close_to_the_body() -> None:
    body = dress(load_body())
    for seed in range(20):
        look = sample_appearance(np.random.default_rng(seed), body)
        assert np.isfinite(look.offsets).all()
        assert look.offsets.min() > -0.02 and look.offsets.max() < 0.06
        hands = body.arm > 2.3
        assert np.abs(look.offsets[hands]).max() < 1e-6


def test_composition_and_borders() -> None:
    background = np.full((8, 8, 3), 100, np.uint8)
    color, alpha = np.full((8, 8, 3), 50, np.uint8), np.full((8, 8), 255, np.uint8)
    alpha[0] = 0
    color[0] = 0
    image = post.compose(color, alpha, background)
    assert np.allclose(image[0], 100) and np.allclose(image[1:], 50)
    post.fill_border(np.random.default_rng(0), image, (2, 0, 8, 8))
    outside = image[:, :2]
    assert np.allclose(outside, outside[0, 0]) or np.allclose(outside, image[:, 2:3])
    assert np.allclose(image[1:, 2:], 50)


def record(index: int) -> dict[str, np.ndarray]:
    image = np.full((32, 32, 3), [index, 128, 200], np.uint8)
    return {"image": image, "index": np.array(index), "joints": np.full((23, 3), index, np.float32)}


def test_shards_read_back(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 500)
    write_shard(path, (record(index) for index in range(500, 504)))
    shard = read_shard(path)
    assert shard["index"].tolist() == [500, 501, 502, 503]
    images = decode_images(shard, [3, 0])
    assert images.shape == (2, 32, 32, 3)
    assert np.abs(images[0].astype(int) - record(503)["image"]).max() <= 4
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a readable shard"):
        read_shard(path)


def test_rendering_resumes_and_refuses_another_recipe(tmp_path: Path) -> None:
    config = read_config(CONFIG, {})
    write_shard(shard_path(tmp_path, 0), (record(index) for index in range(3)))
    assert list(render_shards(tmp_path, config, seed=1, start=0, stop=3)) == [(3, False)]
    with pytest.raises(InputError, match="another configuration or seed"):
        list(render_shards(tmp_path, config, seed=2, start=0, stop=3))


def test_configuration_names_unknown_keys(tmp_path: Path) -> None:
    config = read_config(CONFIG, {"split": "held_out", "backgrounds": "photos"})
    assert config.split == "held_out" and config.backgrounds == Path("photos")
    assert config.scene.fov == (25, 55, 100)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("scene: {truncatd: 0.2}")
    with pytest.raises(InputError, match="truncatd"):
        read_config(wrong, {})
