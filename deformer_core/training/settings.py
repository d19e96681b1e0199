"""The configuration of a training run: what `training/configs/*.yaml` may say. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deformer_core.config import load_config
from deformer_core.data.stream import Augmentation, StreamSet
from deformer_core.errors import InputError
from deformer_core.nn.config import DeFormerConfig
from deformer_core.training.lifting import LiftingConfig
from deformer_core.training.losses import LossConfig

Image = Literal["keypoints", "evidence", "maps"]
SOURCES = ("poses", "rendered", "real", "streams")


@dataclass(frozen=True)
class PosesConfig:
    """People without an image, made as they are needed."""

    fraction: float = 0.0
    """Of a batch."""
    motion_capture: str | None = None
    """Folder for `data.mocap.load_pose_bank`; without it poses are drawn."""
    errors: tuple[str, ...] = ()
    """Feature folders whose detections' errors are given to the keypoints; without any, errors are drawn."""
    decode: bool = False
    """In stage decoder: send them through the decoder too, without image tokens, not only the regressor."""


@dataclass(frozen=True)
class CachedConfig:
    """People of feature folders (`cache_features.py`)."""

    fraction: float = 0.0
    """Of a batch."""
    caches: tuple[str, ...] = ()
    keypoint_noise: float = 0.01
    """Sigma of the noise on the backbone's keypoints, half crop sides."""
    keypoint_drop: float = 0.03
    """Share of keypoints whose score is set near zero."""
    crop_scale: float = 0.12
    crop_shift: float = 0.03
    """Change of the crop where no feature map is used; the labels and keypoints follow exactly."""


@dataclass(frozen=True)
class StreamsConfig:
    """People with images, streamed from tars (`pack.py`); the backbone runs in training."""

    fraction: float = 0.0
    """Of a batch."""
    sets: tuple[StreamSet, ...] = ()
    augmentation: Augmentation = field(default_factory=Augmentation)
    workers: int = 2
    """Processes that read ahead, for each training process; 0: its own thread reads."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up, then down as `schedule` says."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    """On matrices; biases, norms and tokens have none."""
    warmup: int = 300
    """Steps."""
    schedule: Literal["cosine", "step"] = "cosine"
    """`cosine` down to a hundredth of the rate; `step`: times `step_factor` at each of `step_at`."""
    step_at: tuple[float, ...] = (0.5,)
    """Shares of all steps; none keeps the rate constant."""
    step_factor: float = 0.1
    clip: float = 1.0
    """Greatest norm of the gradient."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is saved as the model."""
    regressor_rate: float = 1.0
    """Factor on the learning rate of the initial regressor."""
    backbone_rate: float = 0.0
    """Factor for the backbone. 0 freezes it, and is the only value for cached features."""
    backbone_relative: bool = False
    """Whether the backbone's steps are shares of its weights' size, by output channel (`training.relative`): for
    convolutions with folded batch normalisation, such as MoveNet's. Its part of the learning rate is then such a share.
    Plain engine only."""
    frozen: tuple[str, ...] = ()
    """Modules of the model that keep their weights besides, such as backbone.encoder.stem."""
    backbone_statistics: bool = False
    """Whether a trained backbone's batch normalisation (and dropout) is in training mode too. Off: it keeps the
    statistics of its pretraining, which small batches would spoil."""


@dataclass(frozen=True)
class ValidationConfig:
    every: int = 1000
    """Steps."""
    poses: int = 1024
    """Pose-only people of recordings never trained on; their PA-MPJPE chooses the best weights of stage regressor.
    Of Anny alone."""
    caches: tuple[str, ...] = ()
    """Feature folders never trained on; the mean PA-MPJPE of those with 3D labels chooses the best decoder."""
    streams: tuple[str, ...] = ()
    """The same of packed folders (`pack.py`), whose people are seen in plain crops."""
    stream_people: int = 1000
    """People of each of `streams` at most, evenly spread."""


@dataclass(frozen=True)
class TrainConfig:
    """Top level of the file."""

    model: Literal["deformer", "lifting"] = "deformer"
    stage: Literal["regressor", "decoder"] = "regressor"
    """`regressor` trains the initial regressor alone, on keypoints; `decoder` everything. The backbone learns in both
    by `optimizer.backbone_rate`."""
    seed: int = 0
    steps: int = 20000
    batch_size: int = 256
    """People of a step, over all processes and accumulated parts."""
    accumulation: int = 1
    """Parts of a process's people that go through the model one after the other, to save memory."""
    init: str | None = None
    """Checkpoint to start from: a file, such as the regressor stage's `model.safetensors`, or a shipped name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """Of torch on the CPU; 0 leaves torch's own choice."""
    precision: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 50
    save_minutes: float = 3.0
    save_every: int = 0
    """Steps between checkpoints besides; 0 for none."""
    network: DeFormerConfig = field(default_factory=DeFormerConfig)
    lifting: LiftingConfig = field(default_factory=LiftingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    poses: PosesConfig = field(default_factory=PosesConfig)
    rendered: CachedConfig = field(default_factory=CachedConfig)
    real: CachedConfig = field(default_factory=CachedConfig)
    streams: StreamsConfig = field(default_factory=StreamsConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further entries of DeepSpeed's own configuration, for `--engine deepspeed`."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulation, self.log_every, self.validation.every) < 1:
            raise InputError("steps, batch_size, accumulation, log_every and validation.every must be 1 or more")
        counts = self.counts()
        seen = {name: counts[name] for name in SOURCES if name != "poses" and counts[name]}
        if sum(counts.values()) == 0:
            raise InputError("give one of poses, rendered, real and streams a fraction above 0")
        if self.stage == "decoder" and (self.model == "lifting" or not seen):
            raise InputError("stage decoder needs model deformer and a fraction of rendered, real or streams")
        for name in ("rendered", "real"):
            if counts[name] and not getattr(self, name).caches:
                raise InputError(f"{name}.fraction is above 0: name feature folders under {name}.caches")
        if counts["streams"] and not self.streams.sets:
            raise InputError("streams.fraction is above 0: name packed folders under streams.sets")
        if self.model == "lifting" and (counts["streams"] or self.validation.streams):
            raise InputError("model lifting sees no images: leave out streams and validation.streams")
        if self.optimizer.backbone_rate > 0 and (seen.keys() != {"streams"} or self.validation.caches):
            raise InputError(
                "optimizer.backbone_rate is above 0, but cached features are of the backbone as it was: train and "
                "validate on streams instead of rendered, real and validation.caches"
            )

    @property
    def image(self) -> Image:
        """What training reads of an image: keypoints alone (lifting), what the regressor looks at, or all maps."""
        if self.model == "lifting":
            return "keypoints"
        return "maps" if self.stage == "decoder" or self.network.volume_width else "evidence"

    def counts(self) -> dict[str, int]:
        """People of each source in every batch. The first source takes what rounding leaves."""
        fractions = {name: getattr(self, name).fraction for name in SOURCES}
        whole = sum(fractions.values())
        if whole <= 0 or min(fractions.values()) < 0:
            return dict.fromkeys(fractions, 0)
        counts = {name: int(self.batch_size * share / whole) for name, share in fractions.items()}
        first = next(name for name, share in fractions.items() if share > 0)
        counts[first] += self.batch_size - sum(counts.values())
        return counts


def read_settings(path: Path, overrides: Sequence[str]) -> tuple[TrainConfig, dict[str, Any]]:
    """A YAML file with `key=value` or `section.key=value` on top, and the plain mapping it came from.

    Errors: `InputError` if the file cannot be read, a key is unknown or a value has another type.
    """
    import yaml

    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"configuration {path} cannot be read: {error}") from error
    mapping = override(mapping, overrides)
    return load_config(TrainConfig, mapping, str(path)), mapping


def override(mapping: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy with `section.key=value` entries set; values are read as YAML."""
    import yaml

    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}
    for entry in overrides:
        name, equals, text = entry.partition("=")
        section, dot, key = name.partition(".")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name:
            raise InputError(f"override '{entry}' is not of the form key=value or section.key=value")
        if dot:
            inner = result.setdefault(section, {})
            if not isinstance(inner, dict):
                raise InputError(f"override '{entry}': {section} has no keys")
            inner[key] = value
        else:
            result[name] = value
    return result
