"""Model and loss as one module, so that any engine can step it: batches in, losses out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint
from deformer_core.data.features import MAPS, read_index, weights_digest
from deformer_core.data.sample import Batch
from deformer_core.errors import InputError
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.nn.deformer import DeFormer, configured_backbone
from deformer_core.training.lifting import LiftingMLP, load_lifting
from deformer_core.training.losses import Counts, DeFormerLoss, LabelledMean, Outputs, count_labels
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import Batches, features_of

NUM_KEYPOINTS = 17


class TrainingTask(nn.Module):
    """forward(batches) gives the losses by name; `predict(batch)` the outputs for one of its parts."""

    def __init__(self, config: TrainConfig, model: DeFormer | LiftingMLP, loss: DeFormerLoss) -> None:
        super().__init__()
        self.config, self.model, self.loss = config, model, loss
        if isinstance(model, DeFormer) and config.stage == "regressor":
            for unused in (model.decoder, model.recovery):
                unused.requires_grad_(False)

    def forward(self, batches: Batches, counts: dict[str, Counts] | None = None) -> dict[str, Tensor]:
        """Each part counts by its share of the people. batches: see `sources.Batches`.

        counts: of every part, see `LabelledMean`; the batches' own by default.
        """
        counts = counts or {part: count_labels(batch) for part, batch in batches.items()}
        everyone = torch.stack([count["people"] for count in counts.values()]).sum()
        losses: dict[str, Tensor] = {}
        for part, batch in batches.items():
            share = counts[part]["people"] / everyone
            for name, value in self._losses(batch, counts[part]).items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + share * value
        return losses

    def _losses(self, batch: Batch, counts: Counts) -> dict[str, Tensor]:
        features = self._see(batch)
        losses = self.loss(self._reconstruct(batch, features), batch, counts)
        weight = self.config.loss.backbone_keypoints
        if features is None or not self._learns_to_see or weight <= 0:
            return losses
        uv, known = batch["uv"][:, :NUM_KEYPOINTS], batch["uv_weight"][:, :NUM_KEYPOINTS]
        wrong = self.model.backbone.keypoint_loss(features, uv, known)  # type: ignore[operator, union-attr]
        keypoints = weight * LabelledMean(batch, counts)(wrong, "2d")
        return losses | {"backbone_keypoints": keypoints, "total": losses["total"] + keypoints}

    def predict(self, batch: Batch) -> Outputs:
        """Outputs as `DeFormerLoss.forward` takes them, float32 whatever the precision."""
        return self._reconstruct(batch, self._see(batch))

    def train(self, mode: bool = True) -> TrainingTask:
        """A backbone keeps the statistics of its pretraining unless the configuration says otherwise."""
        super().train(mode)
        if isinstance(self.model, DeFormer) and not self.config.optimizer.backbone_statistics:
            self.model.backbone.eval()
        return self

    @property
    def _learns_to_see(self) -> bool:
        return self.config.optimizer.backbone_rate > 0

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch["box"].device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _see(self, batch: Batch) -> BackboneOutput | None:
        """What the backbone sees, or saw; None for people without an image."""
        if "images" in batch:
            assert isinstance(self.model, DeFormer)
            with self._autocast(batch), torch.set_grad_enabled(self._learns_to_see and torch.is_grad_enabled()):
                return self.model.backbone(batch["images"].permute(0, 3, 1, 2).float())
        return features_of(batch) if MAPS[0] in batch else None

    def _reconstruct(self, batch: Batch, features: BackboneOutput | None) -> Outputs:
        with self._autocast(batch):
            outputs = self._decode(batch, features)
        return _to_float(outputs)

    def _decode(self, batch: Batch, features: BackboneOutput | None) -> Outputs:
        box = batch["box"]
        if isinstance(self.model, LiftingMLP):
            return {"layers": [self.model(batch["keypoints"], box)]}
        if self.config.stage == "decoder" and features is not None:
            return self.model.decode(features, box)
        if features is not None:
            return {"layers": [self.model.regress(features, box)], "keypoints": features.keypoints}
        keypoints = batch["keypoints"]
        if self.config.stage == "decoder" and self.config.poses.decode:
            return self.model.decode(BackboneOutput((), keypoints[:, 0], keypoints), box)  # type: ignore[arg-type]
        return {"layers": [self.model.regressor(keypoints, box, batch.get("pooled"), batch.get("evidence"))]}


def build_model(config: TrainConfig, topology: BodyTopology, pretrained: bool = True) -> DeFormer | LiftingMLP:
    """A fresh model, its random weights drawn from the configuration's seed; pretrained: its backbone is."""
    torch.manual_seed(config.seed)
    if config.model == "lifting":
        return LiftingMLP(config.lifting, topology)
    return DeFormer(config.network, topology, configured_backbone(config.network, pretrained))


def load_weights(model: DeFormer | LiftingMLP, path: Path) -> str:
    """Start from the weights of a model file; returns what was taken, in words.

    A DeFormer whose configuration differs gives its regressor, which must fit, its backbone if it is the same, and its
    decoder if that fits. What only the new network's regressor has starts fresh.
    Errors: `InputError` if the regressor does not fit, or if the file is of another kind or body.
    """
    pairs: list[tuple[nn.Module, nn.Module]]
    if isinstance(model, LiftingMLP):
        taken, pairs = "all weights", [(load_lifting(path, model.topology), model)]
    else:
        source = load_checkpoint(path)
        taken, pairs = "all weights", [(source, model)]
        if source.config != model.config:
            parts = ["regressor"]
            if source.config.backbone == model.config.backbone:
                parts.append("backbone")
            if all(_alike(getattr(source, part), getattr(model, part)) for part in ("decoder", "recovery")):
                parts += ["decoder", "recovery"]
            taken = f"the weights of {', '.join(parts)} alone, since the networks differ,"
            pairs = [(getattr(source, part), getattr(model, part)) for part in parts]
    try:
        for given, target in pairs:
            # What only the new network has stays as it is.
            target.load_state_dict({**target.state_dict(), **given.state_dict()})
    except RuntimeError as error:
        raise InputError(f"{path} is of another architecture than the configuration: {error}") from error
    return f"{taken} from {path}"


def _alike(first: nn.Module, second: nn.Module) -> bool:
    """Whether they have parameters of the same names and shapes."""
    shapes = [{name: value.shape for name, value in one.state_dict().items()} for one in (first, second)]
    return shapes[0] == shapes[1]


def check_features(config: TrainConfig, model: DeFormer | LiftingMLP) -> None:
    """Features to train or validate on must be of the model's own backbone. Errors: `InputError` names the folder."""
    folders = (*config.rendered.caches, *config.real.caches, *config.validation.caches)
    if isinstance(model, LiftingMLP) or not folders:
        return
    digest = weights_digest(model.backbone)
    for folder in folders:
        if read_index(Path(folder)).get("weights") != digest:
            raise InputError(
                f"the features in {folder} are of another backbone than the model's: make them with "
                "cache_features.py --backbone FILE, and start from that file by init"
            )


def _to_float(value: Outputs) -> Outputs:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _to_float(entry) for key, entry in value.items()}
    return [_to_float(entry) for entry in value]
