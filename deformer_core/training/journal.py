"""What a run says while it trains: progress bar, `train.log`, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deformer_core.training.board import Board
from deformer_core.training.pictures import Picture
from deformer_core.training.progress import progress


class Journal:
    """A context of a run that goes from `step` to `steps`. `speaks`: of a run's processes only one does."""

    def __init__(self, out: Path, step: int, steps: int, speaks: bool) -> None:
        self.out, self.step, self.steps, self.speaks = out, step, steps, speaks
        self._open = ExitStack()

    def __enter__(self) -> Journal:
        if self.speaks:
            self.out.mkdir(parents=True, exist_ok=True)
            self._log = self._open.enter_context(open(self.out / "train.log", "a", encoding="utf-8"))
            self._metrics = self._open.enter_context(open(self.out / "metrics.jsonl", "a", encoding="utf-8"))
            self._bar = self._open.enter_context(progress(self.step, self.steps, "steps"))
            self._board = Board(self.out, self.step)
            self._open.callback(self._board.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def advance(self) -> None:
        if self.speaks:
            self._bar.update()

    def say(self, text: str) -> None:
        if self.speaks:
            self._bar.write(text)
            self._log.write(text + "\n")
            self._log.flush()

    def record(self, step: int, entry: Mapping[str, Any]) -> None:
        """Figures for reading by programs, and those that are numbers for curves."""
        if self.speaks:
            self._metrics.write(json.dumps({"step": step, **entry}) + "\n")
            self._metrics.flush()
            self._board.scalars(step, entry)

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        if self.speaks:
            self._board.pictures(step, pictures)

    @property
    def shows(self) -> bool:
        """Whether there is anywhere to show pictures."""
        return self.speaks and not self._board.missing
