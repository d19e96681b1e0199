"""The training loop: batches, engine, moving average, checkpoints, log. Stops and resumes without a trace."""

from __future__ import annotations

import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deformer_core.checkpoint import save_checkpoint
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.training.board import pictures_of
from deformer_core.training.engine import Engine
from deformer_core.training.journal import Journal
from deformer_core.training.lifting import LiftingMLP, save_lifting
from deformer_core.training.losses import Counts, count_labels
from deformer_core.training.processes import Processes, sum_over_processes
from deformer_core.training.schedule import ema_decay, learning_rate
from deformer_core.training.settings import TrainConfig
from deformer_core.training.sources import Batches, Mixture, to_device
from deformer_core.training.task import TrainingTask
from deformer_core.training.validation import Validation

CHECKPOINT = "checkpoint.pt"


class Trainer:
    """Trains `task` by `engine` into the folder `out`, together with the run's other processes.

    `mapping` is the configuration as written, kept in the checkpoint for resuming. Files in `out`, all of the first
    process but what DeepSpeed keeps: `checkpoint.pt` (everything needed to go on; under DeepSpeed with the folder
    `deepspeed`), `model.safetensors` and `best.safetensors` (the moving average), `train.log`, `metrics.jsonl`.
    """

    def __init__(
        self,
        config: TrainConfig,
        mapping: dict[str, Any],
        task: TrainingTask,
        engine: Engine,
        mixture: Mixture,
        validation: Validation,
        processes: Processes,
        out: Path,
    ) -> None:
        self.config, self.mapping, self.task, self.engine, self.out = config, mapping, task, engine, out
        self.mixture, self.validation, self.processes = mixture, validation, processes
        self.step = 0
        self.best: dict[str, float] = {}
        self.average = {name: p.detach().clone() for name, p in engine.weights().items()}
        self._last_save = self._last_log = time.monotonic()
        self._sums: dict[str, float] = {}

    def run(self) -> None:
        """Train to the configured step. On Ctrl-C or SIGTERM the step is ended and saved first.

        Raises:
            InputError: a loss or gradient is not finite; the message names the file the batch was saved to.
            KeyboardInterrupt: stopped.
        """
        self.task.train()
        turns = self.mixture.turns(self.step, self.config.steps)
        speaks = self.processes.rank == 0
        with Journal(self.out, self.step, self.config.steps, speaks) as journal, stop_signals() as signalled:
            try:
                while self.step < self.config.steps:
                    parts = [to_device(turn, self.processes.device) for turn in islice(turns, self.config.accumulation)]
                    wishes = {"stop": bool(signalled), "save": self._is_time_to_save()}
                    losses, wishes = self._train_step(parts, wishes)
                    self._after_step(losses, journal)
                    if wishes["save"] or wishes["stop"]:
                        self.save()
                    if wishes["stop"]:
                        journal.say(f"stopped at step {self.step}, saved; go on with --resume")
                        raise KeyboardInterrupt
            finally:
                turns.close()
            self.save()

    def _train_step(self, parts: list[Batches], wishes: dict[str, bool]) -> tuple[dict[str, float], dict[str, bool]]:
        """Returns the losses of all processes' people, and which wishes any process has."""
        counts = self._mean_counts(parts)
        part_losses = []
        for number, part in enumerate(parts):
            self._seed(number)
            losses = self.engine(part, counts)
            self.engine.backward(losses["total"])
            part_losses.append({name: value.detach() for name, value in losses.items()})
        means, wishes = self._share(part_losses, wishes)
        self._check(means["total"], "loss", parts)
        optimizer = self.config.optimizer
        rate = learning_rate(self.step, self.config.steps, optimizer)
        norm = self.engine.step(rate)
        if norm is not None:
            self._check(norm, "gradient", parts)
        decay = ema_decay(self.step, optimizer.ema)
        with torch.no_grad():
            for name, value in self.engine.weights().items():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        return means | {"gradient": norm or 0.0, "rate": rate}, wishes

    def _seed(self, part: int) -> None:
        """What dropout draws depends on seed, step and part, so a resumed run draws the same."""
        place = [self.config.seed, self.step, self.processes.rank * self.config.accumulation + part]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def _mean_counts(self, parts: list[Batches]) -> dict[str, Counts]:
        """`count_labels` of the step's people by the kind of batch, over all parts of all processes, per part."""
        own = [{kind: count_labels(batch) for kind, batch in part.items()} for part in parts]
        names = [(kind, name) for kind, counts in own[0].items() for name in counts]
        sums = torch.stack([torch.stack([part[kind][name] for part in own]).sum() for kind, name in names])
        means = sum_over_processes(sums) / (len(parts) * self.processes.count)
        counts: dict[str, Counts] = {kind: {} for kind in own[0]}
        for (kind, name), mean in zip(names, means, strict=True):
            counts[kind][name] = mean
        return counts

    def _share(
        self, losses: list[dict[str, Tensor]], wishes: dict[str, bool]
    ) -> tuple[dict[str, float], dict[str, bool]]:
        """Mean losses over parts and processes, and the wishes of any process, in one message."""
        names = list(losses[0])
        own = torch.stack([torch.stack([part[name] for part in losses]).mean() for name in names]).float()
        message = sum_over_processes(torch.cat([own, own.new_tensor([float(wish) for wish in wishes.values()])]))
        values = message.tolist()
        means = {name: value / self.processes.count for name, value in zip(names, values)}
        return means, {name: value > 0 for name, value in zip(wishes, values[len(names) :], strict=True)}

    def _check(self, value: float, what: str, parts: list[Batches]) -> None:
        if np.isfinite(value):
            return
        path = self.out / f"not_finite_{self.step}{f'_rank_{self.processes.rank}' if self.processes.rank else ''}.pt"
        with replace_file(path) as temporary:
            torch.save({"batches": parts, "step": self.step, "model": self.task.model.state_dict()}, temporary)
        raise InputError(
            f"the {what} at step {self.step} is {value}: the batches and weights are in {path}; "
            "lower optimizer.learning_rate or look for bad labels, then --resume"
        )

    def _is_time_to_save(self) -> bool:
        """Asked before a step of what is to be done after it."""
        minutes = (time.monotonic() - self._last_save) / 60
        every = self.config.save_every
        return minutes >= self.config.save_minutes or bool(every and (self.step + 1) % every == 0)

    def _after_step(self, losses: dict[str, float], journal: Journal) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        journal.advance()
        if self.step % self.config.log_every == 0:
            self._log(journal)
        if self.step % self.config.validation.every == 0 or self.step == self.config.steps:
            self._validate(journal)

    def _log(self, journal: Journal) -> None:
        seconds = time.monotonic() - self._last_log
        means = {name: value / self.config.log_every for name, value in self._sums.items()}
        speed = self.config.log_every * self.config.batch_size / seconds
        shown = " ".join(f"{name} {value:.4g}" for name, value in means.items() if value)
        journal.say(f"step {self.step} {speed:.0f} samples/s {shown}")
        journal.record(self.step, {"samples_per_s": speed, **means})
        self._sums, self._last_log = {}, time.monotonic()

    def _validate(self, journal: Journal) -> None:
        if not self.validation.sets:
            return
        self.task.eval()
        with self.engine.swapped(self.average):
            figures, score = self.validation(self.task)
            outputs, batch = self.validation.look(self.task)
        self.task.train()
        if score < self.best.get("score", float("inf")):
            self.best = {"score": score, "step": self.step}
            self.export(self.out / "best.safetensors", figures)
        for name, row in figures.items():
            journal.say(f"step {self.step} {name}: " + " ".join(f"{k} {v:.4g}" for k, v in row.items()))
        journal.record(self.step, {"validation": figures, "best": self.best})
        if journal.shows:
            journal.show(self.step, pictures_of(outputs, batch, self.validation.topology, self.validation.level))
        self._last_log = time.monotonic()

    def export(self, path: Path, figures: dict[str, Any]) -> None:
        """Write the moving average as a model file of its kind. Every process must call it."""
        provenance = {"step": self.step, "config": self.mapping}
        with self.engine.swapped(self.average), self.engine.whole():
            if self.processes.rank > 0:
                return
            if isinstance(self.task.model, LiftingMLP):
                save_lifting(path, self.task.model)
            else:
                save_checkpoint(path, self.task.model, figures, provenance)

    def save(self) -> None:
        """Write the checkpoint and the model, whole or not at all. Every process must call it."""
        state = {
            "step": self.step,
            "config": self.mapping,
            "best": self.best,
            "sums": self._sums,
            "engine": self.engine.save(self.out, self.step, self.average),
        }
        if self.processes.rank == 0:
            with replace_file(self.out / CHECKPOINT) as temporary:
                torch.save(state, temporary)
            self.engine.forget_others(self.out, state["engine"])  # type: ignore[arg-type]
        self.export(self.out / "model.safetensors", {})
        self._last_save = time.monotonic()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of `save`."""
        self.average = self.engine.load(self.out, state["engine"])
        self.step, self.best, self._sums = state["step"], state["best"], state["sums"]


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that fills with the numbers of SIGINT and SIGTERM as they come; a second SIGINT interrupts at once."""
    signalled: list[int] = []

    def note(number: int, frame: Any) -> None:
        if number == signal.SIGINT and number in signalled:
            raise KeyboardInterrupt
        signalled.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield signalled
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_state(path: Path) -> dict[str, Any]:
    """Read `checkpoint.pt`. Errors: `InputError` if it cannot be read."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"checkpoint {path} is damaged or of another program: give another --out folder") from error
