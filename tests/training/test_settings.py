from pathlib import Path

import pytest

from deformer_core.config import load_config
from deformer_core.errors import InputError
from deformer_core.training.settings import TrainConfig, override, read_settings

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "training" / "configs").glob("*.yaml")
    if "stage:" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    folders = ["rendered.caches=[a]", "real.caches=[b]", "streams.sets=[{path: c}]"]
    config, _ = read_settings(path, folders)
    assert sum(config.counts().values()) == config.batch_size


@pytest.mark.parametrize(
    "key, near", [("batchsize=1", "batch_size"), ("loss.edge=1", "edges"), ("poses.moc=1", "poses")]
)
def test_an_unknown_key_names_the_nearest(key: str, near: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("poses: {fraction: 1}\n")
    with pytest.raises(InputError, match=near):
        read_settings(path, [key])


@pytest.mark.parametrize("entry", ["steps", "=3", "steps.more=3", "loss=[", "loss.edges=["])
def test_bad_overrides(entry: str) -> None:
    with pytest.raises(InputError, match="override"):
        override({"steps": 3}, [entry])


def test_overrides_leave_the_original_alone() -> None:
    mapping = {"loss": {"edges": 1.0}, "steps": 2}
    assert override(mapping, ["loss.edges=3", "seed=4", "real.caches=[a, b]"]) == {
        "loss": {"edges": 3}, "steps": 2, "seed": 4, "real": {"caches": ["a", "b"]},
    }  # fmt: skip
    assert mapping == {"loss": {"edges": 1.0}, "steps": 2}


@pytest.mark.parametrize(
    "mapping, text",
    [
        ({}, "fraction"),
        ({"poses": {"fraction": -1}}, "fraction"),
        ({"poses": {"fraction": 1}, "steps": 0}, "steps"),
        ({"poses": {"fraction": 1}, "stage": "decoder"}, "decoder"),
        ({"rendered": {"fraction": 1}}, "rendered.caches"),
        ({"streams": {"fraction": 1}}, "streams.sets"),
        ({"streams": {"fraction": 1, "sets": [{"path": "a", "wait": 2}]}}, "weight"),
        ({"streams": {"fraction": 1, "sets": [{"path": "a"}]}, "model": "lifting"}, "no images"),
        ({"real": {"fraction": 1, "caches": ["a"]}, "optimizer": {"backbone_rate": 0.1}}, "backbone_rate"),
        ({"poses": {"fraction": 1}, "accumulation": 0}, "accumulation"),
        ({"poses": {"fraction": 1}, "steps": "many"}, "integer"),
    ],
)
def test_what_cannot_be(mapping: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_config(TrainConfig, mapping)


def test_counts_are_constant_and_whole() -> None:
    mapping = {"batch_size": 7, "poses": {"fraction": 0.5}, "real": {"fraction": 0.25, "caches": ["a"]}}
    assert load_config(TrainConfig, mapping).counts() == {"poses": 5, "rendered": 0, "real": 2, "streams": 0}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none.yaml"):
        read_settings(tmp_path / "none.yaml", [])
