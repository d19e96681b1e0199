"""Model and loss as one module, so that any engine can step it: batches in, losses out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint
from deformer_core.data.sample import Batch
from deformer_core.errors import InputError
from deformer_core.nn.backbones import BackboneOutput, build_backbone
from deformer_core.nn.deformer import DeFormer
from deformer_core.training.lifting import LiftingMLP, load_lifting
from deformer_core.training.losses import DeFormerLoss, Outputs
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import Batches, features_of


class TrainingTask(nn.Module):
    """forward(batches) gives the losses by name; `predict(part, batch)` the outputs for a part of the batches."""

    def __init__(self, config: TrainConfig, model: DeFormer | LiftingMLP, loss: DeFormerLoss) -> None:
        super().__init__()
        self.config, self.model, self.loss = config, model, loss

    def forward(self, batches: Batches) -> dict[str, Tensor]:
        """Each part counts by its share of the people. Batches: see `sources.Batches`."""
        people = {part: len(batch["box"]) for part, batch in batches.items()}
        losses: dict[str, Tensor] = {}
        for part, batch in batches.items():
            share = people[part] / sum(people.values())
            for name, value in self.loss(self.predict(part, batch), batch).items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + share * value
        return losses

    def predict(self, part: str, batch: Batch) -> Outputs:
        """Outputs as `DeFormerLoss.forward` takes them, float32 whatever the precision."""
        device = batch["box"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            outputs = self._predict(part, batch)
        return _to_float(outputs)

    def _predict(self, part: str, batch: Batch) -> Outputs:
        keypoints, box = batch["keypoints"], batch["box"]
        if isinstance(self.model, LiftingMLP):
            return {"layers": [self.model(keypoints, box)]}
        if self.config.stage == "decoder":
            if part == "images":
                return self.model.decode(features_of(batch), box)
            if self.config.poses.decode:
                return self.model.decode(BackboneOutput((), keypoints[:, 0], keypoints), box)  # type: ignore[arg-type]
        return {"layers": [self.model.regressor(keypoints, box, batch.get("pooled"), batch.get("evidence"))]}


def build_model(config: TrainConfig, topology: BodyTopology) -> DeFormer | LiftingMLP:
    """A fresh model on the pretrained backbone, its random weights drawn from the configuration's seed."""
    torch.manual_seed(config.seed)
    if config.model == "lifting":
        return LiftingMLP(config.lifting, topology)
    return DeFormer(config.network, topology, build_backbone(config.network.backbone, pretrained=True))


def load_weights(model: DeFormer | LiftingMLP, path: Path) -> str:
    """Start from the weights of a model file; returns what was taken, in words.

    A DeFormer whose configuration differs gives its regressor alone, which must fit.
    Errors: `InputError` if it does not, or if the file is of another kind or body.
    """
    source: nn.Module
    target: nn.Module = model
    taken = "all weights"
    if isinstance(model, LiftingMLP):
        source = load_lifting(path, model.topology)
    else:
        source = load_checkpoint(path)
        if source.config != model.config:
            source, target = source.regressor, model.regressor
            taken = "the regressor's weights alone, since the networks differ,"
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        raise InputError(f"{path} is of another architecture than the configuration: {error}") from error
    return f"{taken} from {path}"


def _to_float(value: Outputs) -> Outputs:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _to_float(entry) for key, entry in value.items()}
    return [_to_float(entry) for entry in value]
