"""The training loop: batches, engine, moving average, checkpoints, log. Stops and resumes without a trace."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import save_checkpoint
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.training.engine import Engine
from deformer_core.training.lifting import LiftingMLP, save_lifting
from deformer_core.training.progress import progress
from deformer_core.training.schedule import ema_decay, learning_rate
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import Batches, Mixture, prefetch, to_device
from deformer_core.training.task import TrainingTask
from deformer_core.training.validation import Validation

CHECKPOINT = "checkpoint.pt"


class Trainer:
    """Trains `task` by `engine` into the folder `out`.

    `mapping` is the configuration as written, kept in the checkpoint for resuming. Files in `out`:
    `checkpoint.pt` (everything needed to go on), `model.safetensors` and `best.safetensors` (the moving average),
    `train.log`, `metrics.jsonl`.
    """

    def __init__(
        self,
        config: TrainConfig,
        mapping: dict[str, Any],
        task: TrainingTask,
        engine: Engine,
        topology: BodyTopology,
        mixture: Mixture,
        out: Path,
    ) -> None:
        self.config, self.mapping, self.task, self.engine, self.out = config, mapping, task, engine, out
        self.mixture = mixture
        self.validation = Validation(config, topology)
        self.device = next(task.parameters()).device
        self.step = 0
        self.best: dict[str, float] = {}
        self.average = {name: p.detach().clone() for name, p in self._trained().items()}
        self._last_save = self._last_log = time.monotonic()
        self._sums: dict[str, float] = {}

    def run(self) -> None:
        """Train to the configured step. Ctrl-C saves first.

        Raises:
            InputError: a loss or gradient is not finite; the message names the file the batch was saved to.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.task.train()
        batches = prefetch(self.mixture, self.step, self.config.steps)
        with (
            open(self.out / "train.log", "a", encoding="utf-8") as log,
            progress(self.step, self.config.steps, "steps") as bar,
        ):
            try:
                for batch in batches:
                    losses = self._train_step(to_device(batch, self.device))
                    self._after_step(losses, log, bar)
            except KeyboardInterrupt:
                self.save()
                self._say(log, bar, f"stopped at step {self.step}, saved; go on with --resume")
                raise
            finally:
                batches.close()  # type: ignore[attr-defined]
            self.save()

    def _train_step(self, batch: Batches) -> dict[str, float]:
        losses = self.engine(batch)
        self._check(losses["total"].detach(), "loss", batch)
        self.engine.backward(losses["total"])
        optimizer = self.config.optimizer
        rate = learning_rate(self.step, self.config.steps, optimizer.learning_rate, optimizer.warmup)
        norm = self.engine.step(rate)
        if norm is not None:
            self._check(norm, "gradient", batch)
        decay = ema_decay(self.step, optimizer.ema)
        with torch.no_grad():
            for name, parameter in self._trained().items():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()} | {"gradient": norm or 0.0, "rate": rate}

    def _check(self, value: Tensor | float, what: str, batch: Batches) -> None:
        if np.isfinite(float(value)):
            return
        path = self.out / f"not_finite_{self.step}.pt"
        with replace_file(path) as temporary:
            torch.save({"batch": batch, "step": self.step, "model": self.task.model.state_dict()}, temporary)
        raise InputError(
            f"the {what} at step {self.step} is {float(value)}: the batch and weights are in {path}; "
            "lower optimizer.learning_rate or look for bad labels, then --resume"
        )

    def _after_step(self, losses: dict[str, float], log: TextIO, bar: Any) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        bar.update()
        if self.step % self.config.log_every == 0:
            self._log(log, bar)
        if self.step % self.config.validation.every == 0 or self.step == self.config.steps:
            self._validate(log, bar)
        minutes = (time.monotonic() - self._last_save) / 60
        if minutes >= self.config.save_minutes or (self.config.save_every and self.step % self.config.save_every == 0):
            self.save()

    def _log(self, log: TextIO, bar: Any) -> None:
        seconds = time.monotonic() - self._last_log
        means = {name: value / self.config.log_every for name, value in self._sums.items()}
        speed = self.config.log_every * self.config.batch_size / seconds
        shown = " ".join(f"{name} {value:.4g}" for name, value in means.items() if value)
        self._say(log, bar, f"step {self.step} {speed:.0f} samples/s {shown}")
        self._record({"step": self.step, "samples_per_s": speed, **means})
        self._sums, self._last_log = {}, time.monotonic()

    def _validate(self, log: TextIO, bar: Any) -> None:
        with self.averaged():
            self.task.eval()
            figures, score = self.validation(self.task)
            self.task.train()
        if score < self.best.get("score", float("inf")):
            self.best = {"score": score, "step": self.step}
            self.export(self.out / "best.safetensors", figures)
        for name, row in figures.items():
            self._say(log, bar, f"step {self.step} {name}: " + " ".join(f"{k} {v:.4g}" for k, v in row.items()))
        self._record({"step": self.step, "validation": figures, "best": self.best})
        self._last_log = time.monotonic()

    def _say(self, log: TextIO, bar: Any, text: str) -> None:
        bar.write(text)
        log.write(text + "\n")
        log.flush()

    def _record(self, entry: dict[str, Any]) -> None:
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.task.model.named_parameters() if p.requires_grad}

    def averaged(self) -> _Swap:
        """Context in which the model holds the moving average of its weights."""
        return _Swap(self._trained(), self.average)

    def export(self, path: Path, figures: dict[str, Any]) -> None:
        """Write the moving average as a model file of its kind."""
        provenance = {"step": self.step, "config": self.mapping}
        with self.averaged():
            if isinstance(self.task.model, LiftingMLP):
                save_lifting(path, self.task.model)
            else:
                save_checkpoint(path, self.task.model, figures, provenance)

    def save(self) -> None:
        """Write the checkpoint and the model, whole or not at all."""
        rng = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state()
        state = {
            "step": self.step,
            "config": self.mapping,
            "model": self.task.model.state_dict(),
            "average": self.average,
            "optimizer": self.engine.state(),
            "best": self.best,
            "sums": self._sums,
            "rng": rng,
        }
        with replace_file(self.out / CHECKPOINT) as temporary:
            torch.save(state, temporary)
        self.export(self.out / "model.safetensors", {})
        self._last_save = time.monotonic()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of `save`."""
        self.task.model.load_state_dict(state["model"])
        self.engine.load(state["optimizer"])
        self.average = {name: value.to(self.device) for name, value in state["average"].items()}
        self.step, self.best, self._sums = state["step"], state["best"], state["sums"]
        torch.set_rng_state(state["rng"]["torch"].cpu())
        if self.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"].cpu())


class _Swap:
    """Exchanges the values of two sets of tensors on entry and again on exit."""

    def __init__(self, model: dict[str, Tensor], average: dict[str, Tensor]) -> None:
        self.pairs = [(model[name], average[name]) for name in average]

    def __enter__(self) -> None:
        for live, average in self.pairs:
            live.data, average.data = average.data, live.data

    def __exit__(self, *_: object) -> None:
        self.__enter__()


def load_state(path: Path) -> dict[str, Any]:
    """Read `checkpoint.pt`. Errors: `InputError` if it cannot be read."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"checkpoint {path} is damaged or of another program: give another --out folder") from error
