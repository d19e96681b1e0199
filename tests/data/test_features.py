from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.features import FeatureCache, FeatureWriter
from deformer_core.data.keypoint_errors import DrawnErrors
from deformer_core.data.rendered import RenderedSamples
from deformer_core.data.sample import Sample
from deformer_core.data.synthetic.dataset import Posed, make_labels
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.data.synthetic.scene import SceneConfig, sample_scene
from deformer_core.data.synthetic.shards import shard_path, write_shard
from deformer_core.errors import InputError
from deformer_core.geometry.camera import project_crop
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.training.pose_batches import PoseOnlyBatches

IDENTITY = {"backbone": "b", "weights": "w", "samples": "s"}


def features(rng: np.random.Generator, count: int) -> BackboneOutput:
    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=(count, *shape)).astype(np.float32))

    return BackboneOutput((draw(2, 8, 8), draw(3, 4, 4), draw(4, 2, 2), draw(5, 1, 1)), draw(5), draw(17, 3))


@pytest.fixture
def samples(body: BodyTopology, seed: int) -> list[Sample]:
    batch = PoseOnlyBatches(seed, 7, PoseSampler(body), ParametricBody(body), DrawnErrors())(0)
    keys = ("box", "uv", "uv_weight", "joints", "rotations", "shape", "camera")
    people = [{key: batch[key][row].numpy() for key in keys} for row in range(7)]
    flat = [{key: labels[key] for key in ("box", "uv", "uv_weight")} for labels in people[5:]]
    return [Sample(f"s:{row}", clean=row % 2 == 0, **labels) for row, labels in enumerate(people[:5] + flat)]


def writer(folder: Path, topology: BodyTopology, **changes: str) -> FeatureWriter:
    return FeatureWriter(folder, 7, topology, IDENTITY | {"body": topology.content_hash} | changes)


def test_what_is_written_is_read(
    samples: list[Sample], body: BodyTopology, tmp_path: Path, rng: np.random.Generator
) -> None:
    made = features(rng, 7)
    writer(tmp_path, body).append(made, samples)
    cache = FeatureCache(tmp_path, body)
    rows = np.array([6, 1, 1, 4])
    found = cache.features(rows)
    for a, b in zip((*found.maps, found.pooled), (*made.maps, made.pooled)):
        torch.testing.assert_close(a, b[rows].half().float(), atol=0, rtol=0)
    assert torch.equal(found.keypoints, made.keypoints[rows])
    labels = cache.labels(rows)
    np.testing.assert_array_equal(labels["joints"][1], samples[1].joints)
    assert labels["has_mesh"].tolist() == labels["has_3d"].tolist() == labels["has_camera"].tolist() == [0, 1, 1, 1]
    assert cache.clean.tolist() == [sample.clean for sample in samples] and cache.source[3] == "s:3"


def test_a_stopped_run_goes_on(
    samples: list[Sample], body: BodyTopology, tmp_path: Path, rng: np.random.Generator
) -> None:
    first, second = features(rng, 3), features(rng, 4)
    writer(tmp_path, body).append(first, samples[:3])
    assert len(FeatureCache(tmp_path, body)) == 3
    again = writer(tmp_path, body)
    assert again.done == 3
    again.append(second, samples[3:])
    cache = FeatureCache(tmp_path, body)
    assert len(cache) == 7
    torch.testing.assert_close(cache.pooled(np.arange(7)), torch.cat([first.pooled, second.pooled]), atol=2e-3, rtol=0)


def test_other_features_are_not_mixed_in(
    samples: list[Sample], body: BodyTopology, tmp_path: Path, rng: np.random.Generator
) -> None:
    writer(tmp_path, body).append(features(rng, 7), samples)
    with pytest.raises(InputError, match="another weights"):
        writer(tmp_path, body, weights="other")
    writer(tmp_path / "b", body, body="other").append(features(rng, 7), samples)
    with pytest.raises(InputError, match="another body"):
        FeatureCache(tmp_path / "b", body)


def test_what_is_no_cache(samples: list[Sample], body: BodyTopology, tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="index.json"):
        FeatureCache(tmp_path, body)
    writer(tmp_path, body).append(features(rng, 7), samples)
    (tmp_path / "map_1.npy").write_bytes(b"cut off")
    with pytest.raises(InputError, match="map_1.npy"):
        FeatureCache(tmp_path, body)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="index.json"):
        FeatureCache(tmp_path, body)


def test_shards_become_samples_in_model_space(body: BodyTopology, tmp_path: Path, rng: np.random.Generator) -> None:
    parametric = ParametricBody(body)
    records = []
    for index in range(4):
        rotations, shape, kinds = PoseSampler(body).sample(rng, 1)
        posed = {
            key: value[0].numpy()
            for key, value in parametric(torch.from_numpy(rotations), torch.from_numpy(shape)).items()
        }
        scene = sample_scene(rng, SceneConfig(), posed["coarse"])
        person = Posed(rotations[0], shape[0], kinds[0], posed["coarse"], posed["coarse"], posed["joints"])
        image = np.full((16, 16, 3), 40 * index, np.uint8)
        records.append(
            make_labels(person, scene)
            | {name: np.array(value) for name, value in (("clean", index < 2), ("truncated", index == 3))}
            | {"image": image, "index": np.array(index)}
        )
    expected = [(record["joints"], record["vertices_coarse"]) for record in records]
    write_shard(shard_path(tmp_path, 0), records[:3])
    write_shard(shard_path(tmp_path, 3), records[3:])
    samples = RenderedSamples(tmp_path)
    assert (
        len(samples) == 4 and samples[3].source.endswith(":3") and [samples[i].clean for i in range(4)] == [1, 1, 0, 0]
        and [samples[i].truncated for i in range(4)] == [0, 0, 0, 1]
    )
    for index, (joints, vertices) in enumerate(expected):
        sample = samples[index]
        assert sample.rotations is not None and sample.shape is not None and sample.image is not None
        posed_again = parametric(torch.from_numpy(sample.rotations)[None], torch.from_numpy(sample.shape)[None])
        np.testing.assert_allclose(posed_again["coarse"][0], vertices, atol=2e-5)
        uv = project_crop(*(torch.from_numpy(value)[None] for value in (joints, sample.camera, sample.box)))  # type: ignore[arg-type]
        np.testing.assert_allclose(uv[0], sample.uv, atol=1e-4)
        assert abs(int(sample.image.mean()) - 40 * index) <= 2


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shards"):
        RenderedSamples(tmp_path)
    (tmp_path / "shard_00000000.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="shard_00000000"):
        RenderedSamples(tmp_path)
