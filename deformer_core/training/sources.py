"""Where batches come from. The batch of a step depends on the seed and the step, never on what came before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.augment import jitter_box, perturb_keypoints, reframe
from deformer_core.data.features import MAPS, FeatureCache
from deformer_core.data.keypoint_errors import DrawnErrors, KeypointErrors
from deformer_core.data.mocap import load_pose_bank
from deformer_core.data.sample import Batch, concatenate
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.training.losses import PosePrior
from deformer_core.training.pose_batches import PoseOnlyBatches
from deformer_core.training.settings import CachedConfig, Image, TrainConfig

Batches = dict[str, Batch]
"""`poses`: people without an image; `images`: people with one, by its features. Either may be missing."""


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

    def __call__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        picks = np.sort(rng.integers(self.sizes.sum(), size=self.count))
        starts = np.cumsum(self.sizes) - self.sizes
        which = np.searchsorted(starts, picks, side="right") - 1
        rows = [picks[which == number] - starts[number] for number in range(len(self.caches))]
        batch = concatenate(
            read_rows(cache, mine, self.image) for cache, mine in zip(self.caches, rows, strict=True) if len(mine)
        )
        config = self.config
        noisy = perturb_keypoints(rng, batch["keypoints"], config.keypoint_noise, config.keypoint_drop)
        batch["keypoints"] = noisy
        if self.image == "maps":
            return batch
        return reframe(batch, jitter_box(rng, batch["box"], config.crop_scale, config.crop_shift))


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


class Mixture:
    """The batches of a training run: `mixture(step)`."""

    def __init__(self, config: TrainConfig, topology: BodyTopology) -> None:
        counts = config.counts()
        self.poses: PoseOnlyBatches | None = None
        self.sampler = build_sampler(config, topology, held_out=False)
        if counts["poses"]:
            self.poses = build_poses(config, topology, self.sampler, config.seed * 4 + 1, counts["poses"])
        self.cached = []
        for number, name in enumerate(("rendered", "real")):
            if counts[name]:
                section: CachedConfig = getattr(config, name)
                caches = [FeatureCache(Path(folder), topology) for folder in section.caches]
                seed = config.seed * 4 + 2 + number
                self.cached.append(CachedBatches(seed, counts[name], caches, section, config.image))

    def __call__(self, step: int) -> Batches:
        batches: Batches = {}
        if self.poses is not None:
            batches["poses"] = self.poses(step)
        if self.cached:
            batches["images"] = concatenate(source(step) for source in self.cached)
        return batches

    def prior(self) -> PosePrior:
        """Mean and variance of the poses that are drawn for training."""
        return PosePrior.of(self.sampler.sample(np.random.default_rng(0), 4096)[0])


def build_sampler(config: TrainConfig, topology: BodyTopology, held_out: bool) -> PoseSampler:
    folder = config.poses.motion_capture
    bank = load_pose_bank(Path(folder), topology).split(held_out) if folder else None
    return PoseSampler(topology, bank)


def build_poses(
    config: TrainConfig, topology: BodyTopology, sampler: PoseSampler, seed: int, count: int
) -> PoseOnlyBatches:
    caches = [FeatureCache(Path(folder), topology) for folder in config.poses.errors]
    errors = recorded_errors(caches) if caches else DrawnErrors()
    return PoseOnlyBatches(seed, count, sampler, ParametricBody(topology), errors)


def recorded_errors(caches: Sequence[FeatureCache]) -> KeypointErrors:
    labels = concatenate(cache.labels(np.arange(len(cache))) for cache in caches)
    uv, weight = labels["uv"][:, :17].numpy(), labels["uv_weight"][:, :17].numpy()
    enough = weight.sum(1) >= 8
    return KeypointErrors(labels["keypoints"].numpy()[enough], uv[enough], weight[enough])


def prefetch(make: Callable[[int], Batches], start: int, stop: int, depth: int = 3) -> Iterator[Batches]:
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
