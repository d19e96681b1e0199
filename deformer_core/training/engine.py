"""Who runs backward and the optimiser: plain PyTorch, or DeepSpeed. Both give the same numbers."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.training.settings import OptimizerConfig

ENGINES = ("plain", "deepspeed")
ParameterGroup = dict[str, Any]


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[ParameterGroup]:
    """Groups for AdamW, each with its `rate`, a factor on the learning rate; a part of rate 0 is frozen.

    The parts are the model's children `regressor`, `backbone`, and the rest. Only matrices decay.
    """
    groups: dict[tuple[float, float], ParameterGroup] = {}
    rates = {"regressor": config.regressor_rate, "backbone": config.backbone_rate}
    for name, parameter in module.named_parameters():
        part = next((part for part in rates if part in name.split(".")[:2]), "")
        rate = rates.get(part, 1.0)
        parameter.requires_grad_(rate > 0)
        if rate <= 0:
            continue
        decay = config.weight_decay if parameter.ndim > 1 and not name.endswith("tokens") else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "rate": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


class Engine(ABC):
    """Steps a module whose forward returns the losses. Use: `engine(batches)`, `backward(total)`, `step(rate)`."""

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

    def state(self) -> dict[str, Any]:
        """The optimiser's state, for `load`."""
        return self.optimizer.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def _set_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]


class PlainEngine(Engine):
    def __init__(self, module: nn.Module, config: OptimizerConfig) -> None:
        self.module, self.config = module, config
        self.optimizer = torch.optim.AdamW(parameter_groups(module, config), lr=config.learning_rate)

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        self._set_rate(learning_rate)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)


class DeepSpeedEngine(Engine):
    """DeepSpeed around the same AdamW object: its own JSON "AdamW" would compile a CUDA kernel first."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, batch_size: int, extra: dict[str, Any] | None = None
    ) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise InputError("--engine deepspeed needs DeepSpeed: pip install 'deformer[train]'.") from error
        # On CPUs it would first compile a shared-memory all-reduce, for minutes; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "RANK" not in os.environ:
            # Not started by a launcher: a group of one, without the network.
            os.environ.setdefault("LOCAL_RANK", "0")
            if not dist.is_initialized():
                backend = "nccl" if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        optimizer = torch.optim.AdamW(parameter_groups(module, config), lr=config.learning_rate)
        settings = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_clipping": config.clip,
            "zero_allow_untested_optimizer": True,
            **(extra or {}),
        }
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module = self.engine.module

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, learning_rate: float) -> float | None:
        self._set_rate(learning_rate)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()  # None without ZeRO or 16 bits
        return None if norm is None else float(norm)
