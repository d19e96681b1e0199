"""Batches of images streamed from packed people. What a batch holds depends on the seed and on its step alone.

Nothing is remembered from one batch to the next: which set, which person of it and which change of the crop are all
functions of the person's number in the run. So a run may be stopped anywhere, and any number of processes and
workers, each making its part of the batch, see the same people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import CropChange, crop
from deformer_core.data.packed import PackedPeople
from deformer_core.data.sample import Batch, Sample, collate
from deformer_core.errors import InputError

BLOCK = 1000
"""The sets' weights are met exactly in every so many people."""
WINDOW = 16
"""Shards whose people are mixed: what is read is near to each other, and far more than a batch."""


@dataclass(frozen=True)
class Augmentation:
    """How crops are changed; the defaults are the field's (SPIN, METRO, PyMAF, FastMETRO)."""

    mirror: float = 0.5
    """Probability."""
    rolled: float = 0.4
    """Probability."""
    roll: float = 30.0
    """Sigma of the roll, degrees, clipped at twice that."""
    scale: float = 0.25
    """Sigma of the window's scale, clipped there."""
    shift: float = 0.0
    """Sigma of the window's shift, in its sides."""
    gain: float = 0.4
    """Each channel is multiplied by 1 up to this more or less."""


NO_AUGMENTATION = Augmentation(mirror=0, rolled=0, scale=0, gain=0)


@dataclass(frozen=True)
class StreamSet:
    """One set of the mixture."""

    path: str
    """Folder of `training/pack.py`, or its address in an object store."""
    weight: float = 1.0
    """Share of the people, relative to the other sets'."""
    augmentation: Augmentation | None = None
    """In place of the mixture's."""


class EpochOrder:
    """An endless order of a set's people by position: every epoch holds each once, in an order of its own.

    The shards are shuffled, then the people within every `WINDOW` shards that follow each other.
    """

    def __init__(self, seed: int, sizes: Sequence[int]) -> None:
        self.seed, self.sizes = seed, np.array(sizes)
        self.count = int(self.sizes.sum())
        self._epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._window: tuple[tuple[int, int], NDArray[np.integer]] | None = None

    def __call__(self, position: int) -> int:
        """The row of the person."""
        epoch, place = divmod(position, self.count)
        if self._epoch is None or self._epoch[0] != epoch:
            shards = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes))
            firsts = np.arange(0, len(shards), WINDOW)
            self._epoch = (epoch, shards, np.cumsum([0, *np.add.reduceat(self.sizes[shards], firsts)]))
        _, shards, starts = self._epoch
        window = int(np.searchsorted(starts, place, side="right")) - 1
        if self._window is None or self._window[0] != (epoch, window):
            first_rows = np.cumsum(self.sizes) - self.sizes
            mine = shards[window * WINDOW : (window + 1) * WINDOW]
            rows = np.concatenate([first_rows[shard] + np.arange(self.sizes[shard]) for shard in mine])
            order = np.random.default_rng([self.seed, epoch, window]).permutation(rows)
            self._window = ((epoch, window), order)
        return int(self._window[1][place - starts[window]])


class MixtureOrder:
    """Which set each person of the run is of, and which of that set's people: exact shares in every `BLOCK`."""

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        if not weights or min(weights) <= 0:
            raise InputError("the sets of a stream need weights above 0")
        shares = np.array(weights) / sum(weights) * BLOCK
        counts = np.floor(shares).astype(int)
        counts[np.argsort(counts - shares, kind="stable")[: BLOCK - counts.sum()]] += 1
        if not counts.all():
            raise InputError(f"the set with weight {min(weights)} has less than 1 in {BLOCK} people: raise its weight")
        self.seed, self.counts = seed, counts
        self._block: tuple[int, NDArray[np.integer], NDArray[np.integer]] | None = None

    def __call__(self, number: int) -> tuple[int, int]:
        """(set, position in the set's own order) of a person of the run."""
        block, place = divmod(number, BLOCK)
        if self._block is None or self._block[0] != block:
            sets = np.repeat(np.arange(len(self.counts)), self.counts)
            order = np.random.default_rng([self.seed, block]).permutation(sets)
            positions = np.empty(BLOCK, int)
            for which, count in enumerate(self.counts):
                positions[order == which] = block * count + np.arange(count)
            self._block = (block, order, positions)
        return int(self._block[1][place]), int(self._block[2][place])


class Stream:
    """`stream(step)`: a batch of `count` people with `images`, or some rows of it.

    size: side of the crops, pixels. augmentation: of sets that have none of their own.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        sets: Sequence[StreamSet],
        topology: BodyTopology,
        size: int,
        augmentation: Augmentation,
    ) -> None:
        self.seed, self.count, self.topology, self.size = seed, count, topology, size
        self.people = [PackedPeople(entry.path, topology) for entry in sets]
        self.augmentation = [entry.augmentation or augmentation for entry in sets]
        self._mixture = MixtureOrder(seed, [entry.weight for entry in sets])
        self._orders = [EpochOrder(seed + 1 + number, people.sizes) for number, people in enumerate(self.people)]

    def __call__(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """Errors: `InputError` names the shard that cannot be read."""
        numbers = self._numbers(step, start, stop)
        places = [self._place(number) for number in numbers]
        samples: dict[int, Sample] = {}
        for which, people in enumerate(self.people):
            mine = [(number, row) for number, (of, row) in zip(numbers, places, strict=True) if of == which]
            for (number, _), annotation in zip(mine, people.read([row for _, row in mine]), strict=True):
                rng = np.random.default_rng([self.seed, number])
                augmentation = self.augmentation[which]
                sample = crop(annotation, self.topology, self.size, draw_change(rng, augmentation))
                assert sample.image is not None
                sample.image = draw_gain(rng, augmentation, sample.image)
                samples[number] = sample
        return collate([samples[number] for number in numbers], self.topology)

    def shards(self, step: int, start: int = 0, stop: int | None = None) -> list[str]:
        """Paths of the tars that a batch is read from."""
        places = [self._place(number) for number in self._numbers(step, start, stop)]
        return sorted({self.people[which].shard_of(row) for which, row in places})

    def _numbers(self, step: int, start: int, stop: int | None) -> range:
        return range(step * self.count + start, step * self.count + (self.count if stop is None else stop))

    def _place(self, number: int) -> tuple[int, int]:
        which, position = self._mixture(number)
        return which, self._orders[which](position)


def draw_change(rng: np.random.Generator, config: Augmentation) -> CropChange:
    roll = float(np.clip(rng.normal(0, config.roll), -2 * config.roll, 2 * config.roll))
    rolled, mirrored = rng.random(2)
    scale = float(np.clip(rng.normal(1, config.scale), 1 - config.scale, 1 + config.scale))
    dx, dy = (float(value) for value in rng.normal(0, config.shift, 2))
    return CropChange(
        mirror=bool(mirrored < config.mirror),
        roll=math.radians(roll) if rolled < config.rolled else 0.0,
        scale=scale,
        shift=(dx, dy),
    )


def draw_gain(rng: np.random.Generator, config: Augmentation, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) with each channel brighter or darker."""
    gain = rng.uniform(1 - config.gain, 1 + config.gain, 3)
    table = np.clip(np.arange(256)[:, None] * gain + 0.5, 0, 255).astype(np.uint8)
    return np.stack([table[image[..., channel], channel] for channel in range(3)], -1)
