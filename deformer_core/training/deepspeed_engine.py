"""DeepSpeed around the same AdamW: parameters, gradients and optimiser spread over processes by ZeRO, stages 0 to 3."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.nn.deformable_attention import DeformableMeshAttention
from deformer_core.training.engine import Engine, Weights, parameter_groups
from deformer_core.training.settings import OptimizerConfig

FOLDER = "deepspeed"


class DeepSpeedEngine(Engine):
    """extra: entries of DeepSpeed's own configuration, over those made here."""

    def __init__(
        self,
        module: nn.Module,
        config: OptimizerConfig,
        micro_batch: int,
        accumulation: int = 1,
        extra: dict[str, Any] | None = None,
    ) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise InputError("--engine deepspeed needs DeepSpeed: pip install 'deformer[train]'.") from error
        if config.backbone_relative:
            # ZeRO lays parameters out flat: which numbers are one channel's is not to be seen there.
            raise InputError("optimizer.backbone_relative is not to be had with DeepSpeed: use --engine plain")
        # On CPUs it would first compile a shared-memory all-reduce, for minutes; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        os.environ.setdefault("LOCAL_RANK", "0")
        if not dist.is_initialized():
            # Not started by a launcher: a group of one, without the network.
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        # Not by the name "AdamW": DeepSpeed would compile a CUDA kernel of its own first.
        optimizer = torch.optim.AdamW(parameter_groups(module, config), lr=config.learning_rate)
        settings = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": config.clip,
            "zero_allow_untested_optimizer": True,
            **(extra or {}),
        }
        self._deepspeed = deepspeed
        self.engine, self.optimizer, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.module = self.engine.module
        # Stage 3 fetches a module's own parameters before it runs; these are read by another module.
        for attention in self.module.modules():
            if isinstance(attention, DeformableMeshAttention):
                for parameter in (*attention.offsets.parameters(), *attention.weights.parameters()):
                    deepspeed.zero.register_external_parameter(attention, parameter)

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        return self.engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # counts the part, no more

    def step(self, learning_rate: float) -> float | None:
        self._set_rate(learning_rate)
        self.engine.step()
        norm = self.engine.get_global_grad_norm()  # None without ZeRO or 16 bits
        return None if norm is None else float(norm)

    def _own(self, parameter: Tensor) -> Tensor:
        """Under stage 3 this process's part, flat."""
        return getattr(parameter, "ds_tensor", parameter)

    def _split(self) -> list[nn.Parameter]:
        """Parameters of which each process holds a part."""
        return [p for p in self.module.parameters() if hasattr(p, "ds_tensor")]

    @contextmanager
    def whole(self) -> Iterator[None]:
        with self._deepspeed.zero.GatheredParameters(self._split()):
            yield

    def _swap(self, own: Weights, weights: Weights) -> None:
        super()._swap(own, weights)
        with self.whole():
            pass  # small parameters are kept whole: on leaving, all are made again from their parts when needed

    def save(self, folder: Path, step: int, average: Weights) -> dict[str, Any]:
        tag = f"step_{step}"
        self.engine.save_checkpoint(str(folder / FOLDER), tag=tag, client_state={"average": average})
        return {"deepspeed": tag, "processes": dist.get_world_size()}

    def load(self, folder: Path, state: dict[str, Any]) -> Weights:
        if "deepspeed" not in state:
            raise InputError(f"the run in {folder} was made without DeepSpeed: resume with --engine plain")
        if state["processes"] != dist.get_world_size():
            raise InputError(
                f"the run in {folder} has the state of {state['processes']} processes: resume with as many, "
                f"not {dist.get_world_size()}"
            )
        path, kept = self.engine.load_checkpoint(str(folder / FOLDER), tag=state["deepspeed"])
        if path is None:
            raise InputError(f"{folder / FOLDER / state['deepspeed']} cannot be read: copy it again, or start anew")
        own = self.weights()
        return {name: value.to(own[name].device) for name, value in kept["average"].items()}

    def forget_others(self, folder: Path, state: dict[str, Any]) -> None:
        for path in (folder / FOLDER).iterdir():
            if path.is_dir() and path.name != state["deepspeed"]:
                shutil.rmtree(path)
