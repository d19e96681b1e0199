"""One file format for a trained model: weights, configuration, the body it was trained on, figures and provenance.

A checkpoint is a safetensors file. Floating tensors are stored in 16 bits (in 32 where 16 would change them
noticeably); its metadata holds one JSON record under the key "deformer":

    format      version of this layout
    config      fields of `DeFormerConfig`
    body        name and content hash of the `BodyTopology`
    metrics     figures measured with these weights
    provenance  how they were made
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deformer_core.body.assets import load_body
from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.weights import weight_path

FORMAT = 1
_KEY = "deformer"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself; see the module's docstring."""

    path: Path
    format: int
    config: dict[str, Any]
    body_name: str
    body_hash: str
    metrics: dict[str, Any]
    provenance: dict[str, Any]

    def body(self) -> BodyTopology:
        """The body it was trained on. Errors: `InputError` if the installed body of that name is another one."""
        body = load_body(self.config.get("body", self.body_name))
        if body.content_hash != self.body_hash:
            raise InputError(
                f"checkpoint {self.path} was made for body '{self.body_name}' {self.body_hash}, but the installed one "
                f"is '{body.name}' {body.content_hash}: use a checkpoint made for it, or install the other version"
            )
        return body


def checkpoint_path(name: str | Path) -> Path:
    """The file of a checkpoint: a path, or the name of shipped weights such as "small"."""
    text = str(name)
    if "/" in text or "\\" in text or Path(text).suffix:
        return Path(text)
    return weight_path(f"{text}.safetensors")


def save_checkpoint(path: Path, model: DeFormer, metrics: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write the model whole or not at all. Buffers that the model makes from its body are not stored."""
    body = load_body(model.config.body)
    record = {
        "format": FORMAT,
        # The weights are all in here: where the backbone's once lay is nobody else's business.
        "config": asdict(replace(model.config, backbone_weights=None)),
        "body": {"name": body.name, "hash": body.content_hash},
        "metrics": metrics,
        "provenance": provenance,
    }
    tensors = {name: _to_storage(tensor) for name, tensor in model.state_dict().items()}
    with replace_file(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(record)})


def read_checkpoint_info(name: str | Path) -> CheckpointInfo:
    """Read the record without the weights.

    Raises:
        InputError: there is no such file, it is cut off or corrupt, or it is no checkpoint of this project.
    """
    path = checkpoint_path(name)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: check the path, or use the shipped 'small' or 'light'")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path} is cut off or corrupt ({error}): copy or download it again") from error
    try:
        record = json.loads(metadata[_KEY])
        if record["format"] != FORMAT:
            raise InputError(
                f"checkpoint {path} has format {record['format']} and this version reads {FORMAT}: install the "
                "version that wrote it, or train again"
            )
        body = record["body"]
        parts = record["config"], body["name"], body["hash"], record["metrics"], record["provenance"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} holds tensors but no DeFormer checkpoint: give one of training/train.py") from error
    return CheckpointInfo(path, record["format"], *parts)


def load_checkpoint(name: str | Path, device: str | torch.device = "cpu") -> DeFormer:
    """Build the model of a checkpoint, float32, in evaluation mode.

    name: a path, or the name of shipped weights such as "small".

    Raises:
        InputError: as `read_checkpoint_info`; the body differs; the configuration or the tensors do not fit.
    """
    info = read_checkpoint_info(name)
    model = DeFormer(_read_config(info), info.body())
    expected = model.state_dict()
    try:
        with safe_open(info.path, framework="pt") as file:
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {info.path} is corrupt ({error}): copy or download it again") from error
    _check_tensors(info.path, expected, stored)
    model.load_state_dict({key: tensor.to(expected[key].dtype) for key, tensor in stored.items()})
    return model.to(device).eval()


def _to_storage(tensor: Tensor) -> Tensor:
    """A contiguous CPU copy in float16, or as it is where that loses more than 0.1 % of the largest magnitude."""
    tensor = tensor.detach().cpu().contiguous()
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return tensor.clone()
    half = tensor.half()
    loss = (half.float() - tensor.float()).abs().max()
    return half if loss <= 1e-3 * tensor.abs().max() else tensor.clone()


def _read_config(info: CheckpointInfo) -> DeFormerConfig:
    known = {field.name for field in fields(DeFormerConfig)}
    unknown = sorted(set(info.config) - known)
    if unknown:
        raise InputError(
            f"checkpoint {info.path} has the unknown configuration key '{unknown[0]}': "
            "install the version that wrote it"
        )
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in info.config.items()
    }
    return DeFormerConfig(**values)


def _check_tensors(path: Path, expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Every tensor there, none too many, every shape right; else `InputError` with the count and the first names."""
    reshaped = [key for key in stored if key in expected and stored[key].shape != expected[key].shape]
    problems = [
        f"{len(keys)} {kind} ({', '.join(sorted(keys)[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in (
            ("missing", expected.keys() - stored.keys()),
            ("unexpected", stored.keys() - expected.keys()),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if problems:
        raise InputError(
            f"checkpoint {path} does not fit this version's model, tensors {'; '.join(problems)}: "
            "install the version that wrote it"
        )
