"""Where batches come from. The batch of a step depends on the seed and the step, never on what came before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.augment import jitter_box, perturb_keypoints, reframe
from deformer_core.data.features import MAPS, FeatureCache
from deformer_core.data.keypoint_errors import DrawnErrors, KeypointErrors
from deformer_core.data.loading import load_ahead
from deformer_core.data.retarget import pose_sampler
from deformer_core.data.sample import Batch, concatenate
from deformer_core.data.stream import Stream
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.errors import InputError
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.training.losses import PosePrior
from deformer_core.training.pose_batches import PoseOnlyBatches
from deformer_core.training.settings import CachedConfig, Image, TrainConfig

Batches = dict[str, Batch]
"""`poses`: people without an image; `features`: people with cached features of one; `images`: people with one. Any may
be missing."""


class CachedBatches:
    """People drawn from feature folders, each as likely as any other.

    image: what is read of the image, see `TrainConfig.image`. Without feature maps the crops are changed a little
    instead, which labels and keypoints follow exactly and the rest hardly notices.
    """

    def __init__(
        self, seed: int, count: int, caches: Sequence[FeatureCache], config: CachedConfig, image: Image
    ) -> None:
        self.seed, self.count, self.config, self.image = seed, count, config, image
        self.caches = caches
        self.sizes = np.array([len(cache) for cache in caches])

    def __call__(self, step: int, start: int = 0, stop: int | None = None) -> Batch:
        """People start to stop of the step's, all by default."""
        rng = np.random.default_rng([self.seed, step])
        mine = slice(start, stop)
        picks = np.sort(rng.integers(self.sizes.sum(), size=self.count))[mine]
        starts = np.cumsum(self.sizes) - self.sizes
        which = np.searchsorted(starts, picks, side="right") - 1
        rows = [picks[which == number] - starts[number] for number in range(len(self.caches))]
        batch = concatenate(
            read_rows(cache, wanted, self.image) for cache, wanted in zip(self.caches, rows, strict=True) if len(wanted)
        )
        config = self.config

        def among_all(values: torch.Tensor) -> torch.Tensor:
            """At their places in the whole batch: what is drawn for a person is the same whoever asks."""
            whole = values.new_ones(self.count, *values.shape[1:])
            whole[mine] = values
            return whole

        noisy = perturb_keypoints(rng, among_all(batch["keypoints"]), config.keypoint_noise, config.keypoint_drop)
        batch["keypoints"] = noisy[mine]
        if self.image == "maps":
            return batch
        return reframe(batch, jitter_box(rng, among_all(batch["box"]), config.crop_scale, config.crop_shift)[mine])


def read_rows(cache: FeatureCache, rows: np.ndarray, image: Image) -> Batch:
    """Labels, keypoints, and what `TrainConfig.image` says of the image."""
    batch = cache.labels(rows)
    if image == "keypoints":
        return batch
    if image == "evidence":
        return batch | {"pooled": cache.pooled(rows), "evidence": cache.evidence(rows)}
    features = cache.features(rows)
    return batch | dict(zip((*MAPS, "pooled"), (*features.maps, features.pooled), strict=True))


def features_of(batch: Batch) -> BackboneOutput:
    """The backbone's output for a batch that holds its maps."""
    first, second, third, fourth = (batch[name] for name in MAPS)
    return BackboneOutput((first, second, third, fourth), batch["pooled"], batch["keypoints"])


@dataclass(frozen=True)
class Shares:
    """How a step's people are spread: over `processes`, each of which takes its in `accumulation` parts."""

    rank: int = 0
    processes: int = 1
    accumulation: int = 1

    @property
    def count(self) -> int:
        """Parts of a step, all processes together."""
        return self.processes * self.accumulation

    def part(self, turn: int) -> tuple[int, int]:
        """(step, which of its parts) of this process's `turn`: it has `accumulation` turns a step."""
        step, own = divmod(turn, self.accumulation)
        return step, self.rank * self.accumulation + own


def rows_of_part(people: int, part: int, parts: int) -> tuple[int, int]:
    """First and last (excluded) of so many people that are in a part."""
    return people * part // parts, people * (part + 1) // parts


@dataclass(frozen=True)
class StreamTurns:
    """A process's turns of a stream, for `load_ahead`."""

    stream: Stream
    shares: Shares

    def __call__(self, turn: int) -> Batch:
        return self.stream(*self._rows(turn))

    def shards(self, turn: int) -> list[str]:
        return self.stream.shards(*self._rows(turn))

    def _rows(self, turn: int) -> tuple[int, int, int]:
        step, part = self.shares.part(turn)
        return step, *rows_of_part(self.stream.count, part, self.shares.count)


class Mixture:
    """The batches of a training run: `mixture(step)`, or `turns` for one of many processes.

    image_size: of a stream's crops, pixels. Errors: `InputError` if a source has fewer people than there are parts.
    """

    def __init__(
        self, config: TrainConfig, topology: BodyTopology, image_size: int = 256, shares: Shares | None = None
    ) -> None:
        counts = config.counts()
        self.config, self.shares = config, shares or Shares()
        for name, count in counts.items():
            if 0 < count < self.shares.count:
                raise InputError(
                    f"a step's {count} people of {name} cannot be spread over {self.shares.processes} processes with "
                    f"accumulation {self.shares.accumulation}: raise batch_size or {name}.fraction"
                )
        self.sampler = build_sampler(config, topology, held_out=False)
        self.poses: PoseOnlyBatches | None = None
        if counts["poses"]:
            self.poses = build_poses(config, topology, config.seed * 4 + 1, counts["poses"], held_out=False)
        self.cached = []
        for number, name in enumerate(("rendered", "real")):
            if counts[name]:
                section: CachedConfig = getattr(config, name)
                caches = [FeatureCache(Path(folder), topology) for folder in section.caches]
                seed = config.seed * 4 + 2 + number
                self.cached.append(CachedBatches(seed, counts[name], caches, section, config.image))
        self.stream: Stream | None = None
        if counts["streams"]:
            streams = config.streams
            self.stream = Stream(
                config.seed, counts["streams"], streams.sets, topology, image_size, streams.augmentation
            )

    def __call__(self, step: int) -> Batches:
        """All people of a step."""
        batches = self._unseen(step, 0, 1)
        return batches | ({"images": self.stream(step)} if self.stream is not None else {})

    def turns(self, start: int, stop: int) -> Generator[Batches, None, None]:
        """This process's parts of the steps start to stop, `accumulation` a step, made ahead. To be closed."""
        first, last = start * self.shares.accumulation, stop * self.shares.accumulation
        images: Generator[Batch, None, None] | None = None
        if self.stream is not None:
            turns = StreamTurns(self.stream, self.shares)
            images = load_ahead(turns, first, last, self.config.streams.workers, turns.shards)

        def make(turn: int) -> Batches:
            step, part = self.shares.part(turn)
            batches = self._unseen(step, part, self.shares.count)
            return batches | ({"images": next(images)} if images is not None else {})

        try:
            yield from prefetch(make, first, last)
        finally:
            if images is not None:
                images.close()

    def _unseen(self, step: int, part: int, parts: int) -> Batches:
        """What needs no image."""

        def rows(source: PoseOnlyBatches | CachedBatches) -> Batch:
            return source(step, *rows_of_part(source.count, part, parts))

        batches: Batches = {}
        if self.poses is not None:
            batches["poses"] = rows(self.poses)
        if self.cached:
            batches["features"] = concatenate(rows(source) for source in self.cached)
        return batches

    def prior(self) -> PosePrior:
        """Mean and variance of the poses that are drawn for training."""
        return PosePrior.of(self.sampler.sample(np.random.default_rng(0), 4096)[0])


def build_sampler(config: TrainConfig, topology: BodyTopology, held_out: bool) -> PoseSampler:
    folder = config.poses.motion_capture
    return pose_sampler(topology, Path(folder) if folder else None, held_out)


def build_poses(config: TrainConfig, topology: BodyTopology, seed: int, count: int, held_out: bool) -> PoseOnlyBatches:
    caches = [FeatureCache(Path(folder), topology) for folder in config.poses.errors]
    errors = recorded_errors(caches) if caches else DrawnErrors()
    return PoseOnlyBatches(seed, count, build_sampler(config, topology, held_out), ParametricBody(topology), errors)


def recorded_errors(caches: Sequence[FeatureCache]) -> KeypointErrors:
    labels = concatenate(cache.labels(np.arange(len(cache))) for cache in caches)
    uv, weight = labels["uv"][:, :17].numpy(), labels["uv_weight"][:, :17].numpy()
    enough = weight.sum(1) >= 8
    return KeypointErrors(labels["keypoints"].numpy()[enough], uv[enough], weight[enough])


def prefetch(make: Callable[[int], Batches], start: int, stop: int, depth: int = 3) -> Generator[Batches, None, None]:
    """`make(start)`, ..., `make(stop - 1)`, made ahead by one thread, which ends when the iterator is closed."""
    ready: queue.Queue[Batches | BaseException] = queue.Queue(depth)
    closed = threading.Event()

    def work() -> None:
        result: Batches | BaseException
        for step in range(start, stop):
            try:
                result = make(step)
            except BaseException as error:  # handed to the caller
                result = error
            while not closed.is_set():
                try:
                    ready.put(result, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if closed.is_set() or isinstance(result, BaseException):
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            result = ready.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        closed.set()
        thread.join()


def to_device(batches: Batches, device: torch.device) -> Batches:
    return {part: {key: value.to(device) for key, value in batch.items()} for part, batch in batches.items()}
