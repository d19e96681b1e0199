"""The baseline every image model must beat on the same data: 2D keypoints to a mesh, without the image.

A residual MLP in the manner of Martinez et al., "A simple yet effective baseline for 3d human pose estimation"
(ICCV 2017), from keypoints and scores to coarse vertices and camera.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.training.losses import Outputs

_KEY = "lifting"


@dataclass(frozen=True)
class LiftingConfig:
    width: int = 512
    blocks: int = 3
    dropout: float = 0.1


class LiftingMLP(nn.Module):
    """keypoints (B, 17, 3), box (B, 3) to the outputs of one layer, see `losses.DeFormerLoss.forward`."""

    def __init__(self, config: LiftingConfig, topology: BodyTopology) -> None:
        super().__init__()
        self.config = config
        self.topology = topology
        coarse = topology.levels["coarse"]
        self.hips = topology.hips
        self.register_buffer("template", torch.from_numpy(coarse.vertices), persistent=False)
        self.register_buffer("regressor", torch.from_numpy(coarse.joint_regressor.dense()), persistent=False)
        self.input = nn.Linear(17 * 5 + 3 + 3, config.width)
        self.blocks = nn.Sequential(*(_Residual(config) for _ in range(config.blocks)))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, len(coarse.vertices) * 3 + 3)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(self, keypoints: Tensor, box: Tensor) -> Outputs:
        hidden = self.norm(self.blocks(self.input(encode_keypoints(keypoints, box))))
        out = self.output(hidden)
        vertices = self.template + out[:, :-3].unflatten(1, self.template.shape)
        joints = self.regressor @ vertices
        pelvis = (joints[:, self.hips[0]] + joints[:, self.hips[1]])[:, None] / 2
        camera = torch.cat([out[:, -3:-2].clamp(-3, 3).exp(), out[:, -2:]], 1)
        return {"vertices_coarse": vertices - pelvis, "camera": camera}


class _Residual(nn.Module):
    def __init__(self, config: LiftingConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def encode_keypoints(keypoints: Tensor, box: Tensor) -> Tensor:
    """(B, 17, 3), (B, 3) to (B, 91): places in the crop, places about their score-weighted mean over their spread,
    scores; then that mean, the spread, and the crop's box."""
    place, score = keypoints[..., :2], keypoints[..., 2:].clamp(0, 1)
    weight = score / score.sum(1, keepdim=True).clamp(min=1e-3)
    mean = (place * weight).sum(1, keepdim=True)
    spread = ((place - mean).square().sum(-1, keepdim=True) * weight).sum(1, keepdim=True).clamp(min=1e-4).sqrt()
    rows = torch.cat([place, (place - mean) / spread, score], -1)
    return torch.cat([rows.flatten(1), mean.flatten(1), spread.flatten(1), box], 1)


def save_lifting(path: Path, model: LiftingMLP) -> None:
    """Write the baseline in half precision, whole or not at all."""
    record = {"config": asdict(model.config), "body": model.topology.content_hash}
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(record)})


def load_lifting(path: Path, topology: BodyTopology) -> LiftingMLP:
    """Errors: `InputError` if the file is missing, corrupt, no baseline of ours, or made for another body."""
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[_KEY])
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 (not a dict)
        model = LiftingMLP(LiftingConfig(**record["config"]), topology)
        if record["body"] != topology.content_hash:
            raise InputError(f"{path} was trained on another body than '{topology.name}': train it again.")
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is not a lifting baseline ({error}): train it with model=lifting.") from error
    return model.eval()
