"""Who runs backward and the optimiser: plain PyTorch here, or DeepSpeed. Both give the same numbers."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.training.relative import RelativeAdamW
from deformer_core.training.settings import OptimizerConfig

ENGINES = ("plain", "deepspeed")
ParameterGroup = dict[str, Any]
Weights = dict[str, Tensor]


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[ParameterGroup]:
    """Groups for AdamW, each with its `rate`, a factor on the learning rate; what is not to learn is frozen here.

    The parts are the model's children `regressor`, `backbone`, and the rest. Only matrices decay, and none whose steps
    are relative: a decay is so already.
    Errors: `InputError` if `config.frozen` names a module that is not there.
    """
    for frozen in config.frozen:
        _module(module, frozen).requires_grad_(False)
    groups: dict[tuple[float, float, bool], ParameterGroup] = {}
    rates = {"regressor": config.regressor_rate, "backbone": config.backbone_rate}
    for name, parameter in module.named_parameters():
        part = next((part for part in rates if part in name.split(".")[:2]), "")
        rate = rates.get(part, 1.0)
        if rate <= 0:
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        relative = config.backbone_relative and part == "backbone"
        decays = parameter.ndim > 1 and not name.endswith("tokens") and not relative
        decay = config.weight_decay if decays else 0.0
        group = groups.setdefault(
            (rate, decay, relative), {"params": [], "rate": rate, "weight_decay": decay, "relative": relative}
        )
        group["params"].append(parameter)
    return list(groups.values())


def _module(task: nn.Module, name: str) -> nn.Module:
    """A module of the task's model by name."""
    assert isinstance(task.model, nn.Module)
    modules = dict(task.model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1, cutoff=0)[0]
        raise InputError(f"optimizer.frozen: the model has no module '{name}'; the nearest is '{near}'")
    return modules[name]


class Engine(ABC):
    """Steps a module whose forward returns the losses, in this process's share of all processes.

    A step: for each of `accumulation` parts `engine(batches, counts)` and `backward(total)`, then `step(rate)`. The
    gradient is the mean over parts and processes.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def __call__(self, *inputs: Any) -> dict[str, Tensor]: ...

    @abstractmethod
    def backward(self, loss: Tensor) -> None: ...

    @abstractmethod
    def step(self, learning_rate: float) -> float | None:
        """Clip, update, clear the gradients. Returns the gradient's norm before clipping, where it is known.

        The plain engine does not update on a gradient that is not finite.
        """

    def weights(self) -> Weights:
        """What this process holds of each trained parameter of the module's `model`, by name."""
        model = self.module.model
        assert isinstance(model, nn.Module)
        return {name: self._own(p) for name, p in model.named_parameters() if p.requires_grad}

    def _own(self, parameter: Tensor) -> Tensor:
        return parameter

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Context in which every process has all parameters whole, to be read. Every process must enter it."""
        yield

    @contextmanager
    def swapped(self, weights: Weights) -> Iterator[None]:
        """Context in which the model has other values of `weights()`. Every process must enter it."""
        own = self.weights()
        self._swap(own, weights)
        try:
            yield
        finally:
            self._swap(own, weights)

    def _swap(self, own: Weights, weights: Weights) -> None:
        for name, value in weights.items():
            own[name].data, value.data = value.data, own[name].data

    @abstractmethod
    def save(self, folder: Path, step: int, average: Weights) -> dict[str, Any]:
        """Keep model, average and optimiser; returns what `load` needs of it, for rank 0 to write.

        Every process must call it; what cannot be in one file goes into the folder.
        """

    @abstractmethod
    def load(self, folder: Path, state: dict[str, Any]) -> Weights:
        """Go on from what `save` kept; returns the average."""

    def forget_others(self, folder: Path, state: dict[str, Any]) -> None:
        """Delete what earlier calls of `save` put into the folder. Rank 0 only."""
        return None

    def _set_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]


class PlainEngine(Engine):
    """PyTorch alone. Several processes add up their gradients after backward."""

    def __init__(self, module: nn.Module, config: OptimizerConfig, accumulation: int = 1) -> None:
        self.module, self.config, self.accumulation = module, config, accumulation
        self.optimizer = RelativeAdamW(parameter_groups(module, config), lr=config.learning_rate)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()

    def step(self, learning_rate: float) -> float:
        self._set_rate(learning_rate)
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _average_gradients(self) -> None:
        """Over processes, in one message: gradients one after the other, and whether there is one."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        used = torch.tensor([p.grad is not None for p in self.parameters], device=self.parameters[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = torch.cat([used.float(), *(gradient.flatten() for gradient in gradients)])
        dist.all_reduce(flat)
        anywhere, *parts = flat.split([len(used), *(p.numel() for p in self.parameters)])
        for parameter, mean, count in zip(self.parameters, parts, anywhere.tolist(), strict=True):
            # A parameter that nobody used keeps no gradient, as with one process: its weight must not decay.
            parameter.grad = (mean / dist.get_world_size()).view_as(parameter) if count else None

    def save(self, folder: Path, step: int, average: Weights) -> dict[str, Any]:
        model = self.module.model
        assert isinstance(model, nn.Module)
        return {"model": model.state_dict(), "average": average, "optimizer": self.optimizer.state_dict()}

    def load(self, folder: Path, state: dict[str, Any]) -> Weights:
        if "model" not in state:
            raise InputError(f"the run in {folder} was made with DeepSpeed: resume with --engine deepspeed")
        model = self.module.model
        assert isinstance(model, nn.Module)
        model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        device = self.parameters[0].device
        return {name: value.to(device) for name, value in state["average"].items()}
