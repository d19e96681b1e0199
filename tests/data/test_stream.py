"""The order of a stream is a function of its seed: whoever makes whichever part of it sees the same people."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.loading import load_ahead
from deformer_core.data.packed import pack
from deformer_core.data.sample import concatenate, pose_labels
from deformer_core.data.stream import (
    BLOCK,
    NO_AUGMENTATION,
    WINDOW,
    Augmentation,
    EpochOrder,
    MixtureOrder,
    Stream,
    StreamSet,
    draw_change,
    draw_gain,
)
from deformer_core.errors import InputError
from deformer_core.geometry.camera import project_crop
from tests.data.drawn_people import draw_people


@pytest.fixture(scope="module")
def sets(body: BodyTopology, tmp_path_factory: pytest.TempPathFactory) -> tuple[StreamSet, ...]:
    folder = tmp_path_factory.mktemp("packed")
    for name, count in (("a", 8), ("b", 5)):
        list(pack(draw_people(body, count, len(name)), folder / name, body, {}, shard_size=3))
    return (StreamSet(str(folder / "a"), 2.0), StreamSet(str(folder / "b"), 1.0, NO_AUGMENTATION))


@pytest.fixture
def stream(sets: tuple[StreamSet, ...], body: BodyTopology, seed: int) -> Stream:
    return Stream(seed, 6, sets, body, 64, Augmentation(shift=0.02))


def test_an_epoch_holds_everyone_once_from_few_shards_at_a_time(seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, 9, 5 * WINDOW - 3)
    order = EpochOrder(seed, sizes)
    count = int(sizes.sum())
    epochs = [[order(epoch * count + place) for place in range(count)] for epoch in range(2)]
    for rows in epochs:
        assert sorted(rows) == list(range(count))
        shards = np.searchsorted(np.cumsum(sizes), rows, side="right")
        for start in range(0, count - 20, 7):
            assert len(set(shards[start : start + 20])) <= 2 * WINDOW
    assert epochs[0] != epochs[1]
    assert [EpochOrder(seed, sizes)(place) for place in (count + 3, 2)] == [epochs[1][3], epochs[0][2]]


def test_weights_are_met_exactly(seed: int) -> None:
    order = MixtureOrder(seed, [3.0, 1.0, 1 / 3])
    found = [order(number) for number in range(2 * BLOCK)]
    counts = Counter(which for which, _ in found)
    assert [counts[which] for which in range(3)] == [1384, 462, 154]
    for which in range(3):  # each set's own order is gone through without gap or repeat
        assert [position for of, position in found if of == which] == list(range(counts[which]))
    with pytest.raises(InputError, match="weight"):
        MixtureOrder(seed, [1.0, 1e-5])


def test_labels_of_streamed_people_fit_each_other(stream: Stream, body: BodyTopology) -> None:
    batch = concatenate([stream(0), stream(1)])
    assert batch["images"].shape == (12, 64, 64, 3) and batch["images"].dtype == torch.uint8
    true = pose_labels(batch, ParametricBody(body))
    known = true["has_mesh"] > 0
    assert 0 < int(known.sum()) < 12
    uv = project_crop(true["joints"], true["camera"], true["box"])
    # Mirrored bodies differ by millimetres, since the body is not quite symmetric.
    torch.testing.assert_close(uv[known], true["uv"][known], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("rank", "processes", "workers"), [(0, 1, 0), (0, 2, 0), (1, 2, 2), (0, 3, 0), (1, 3, 0), (2, 3, 0)]
)
def test_workers_and_processes_change_nothing(stream: Stream, rank: int, processes: int, workers: int) -> None:
    whole = [stream(step) for step in range(4)]
    rows = (6 * rank // processes, 6 * (rank + 1) // processes)
    made = load_ahead(Rows(stream, *rows), 1, 4, workers, no_files)
    for step, batch in zip((1, 2, 3), made, strict=True):
        for name, values in batch.items():
            assert torch.equal(values, whole[step][name][slice(*rows)]), name


class Rows:
    def __init__(self, stream: Stream, start: int, stop: int) -> None:
        self.stream, self.rows = stream, (start, stop)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(step)  # the state of generators must not matter
        return self.stream(step, *self.rows)


def test_seeds_and_steps_differ(stream: Stream, sets: tuple[StreamSet, ...], body: BodyTopology, seed: int) -> None:
    other = Stream(seed + 1, 6, sets, body, 64, Augmentation())
    assert not torch.equal(stream(0)["uv"], other(0)["uv"]) and not torch.equal(stream(0)["uv"], stream(1)["uv"])


def test_a_shard_that_cannot_be_read_is_named(body: BodyTopology, tmp_path: Path) -> None:
    list(pack(draw_people(body, 4, 0), tmp_path, body, {}, shard_size=2))
    stream = Stream(0, 4, (StreamSet(str(tmp_path)),), body, 32, Augmentation())
    (tmp_path / "shard_000001.tar").unlink()
    with pytest.raises(InputError, match="shard_000001.tar") as caught:
        list(load_ahead(stream, 0, 2, 1, no_files))
    assert len(str(caught.value).splitlines()) == 1


def no_files(number: int) -> list[str]:
    return []


def dies(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_stops_the_run_and_what_it_read_is_named() -> None:
    seen = []
    with pytest.raises(InputError, match="killed.* shard 2"):
        for number in load_ahead(dies, 0, 9, 2, lambda number: [f"shard {number}"]):
            seen.append(number)
    assert seen == [0, 1][: len(seen)]


def test_changes_are_drawn_as_the_field_does(rng: np.random.Generator) -> None:
    changes = [draw_change(rng, Augmentation()) for _ in range(2000)]
    scales = np.array([change.scale for change in changes])
    rolls = np.degrees([change.roll for change in changes])
    assert scales.min() == 0.75 and scales.max() == 1.25 and abs(scales.mean() - 1) < 0.02
    assert np.abs(rolls).max() <= 60 and abs((rolls == 0).mean() - 0.6) < 0.05
    assert abs(rolls[rolls != 0].std() - 29) < 3  # 30, less the tails
    assert abs(np.mean([change.mirror for change in changes]) - 0.5) < 0.05
    assert all(change.shift == (0, 0) for change in changes)


def test_gain(rng: np.random.Generator) -> None:
    grey = np.full((2, 2, 3), 200, np.uint8)
    means = np.array([draw_gain(rng, Augmentation(), grey)[0, 0] for _ in range(500)])
    assert means.min() >= 120 and means.max() == 255 and np.ptp(means, axis=1).mean() > 20
    assert (draw_gain(rng, NO_AUGMENTATION, grey) == grey).all()
