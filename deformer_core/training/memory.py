"""Peak memory: of this process over a stretch of its work, and of commands run beside it.

On the CPU, what a process itself allocated is counted (Linux' RssAnon, megabytes of 1e6 bytes), not pages of the files
that it reads, which would make a feature cache on disk look like memory. NaN on other systems.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

POLL = 0.02
"""Seconds."""


class PeakMemory:
    """Context: afterwards `peak` is the most memory held in it beyond what was held before, MB, on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = float("nan")
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device) / 1e6
        else:
            self._before = held(os.getpid())
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) / 1e6 - self._before
        else:
            self._ended.set()
            self._watcher.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL / 4):
            self.peak = larger(self.peak, held(os.getpid()) - self._before)


def run_measured(command: Sequence[str], log: Path) -> tuple[int, float]:
    """Run a command, its output added to `log`. Returns its exit code and its peak memory, MB."""
    peak = float("nan")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = larger(peak, held(process.pid))
                time.sleep(POLL)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    return process.returncode, peak


def held(process: int) -> float:
    """MB that a process has allocated."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("nan")
    kilobytes = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), "nan")
    return float(kilobytes) * 1024 / 1e6


def larger(a: float, b: float) -> float:
    """The larger of two numbers; NaN is no number."""
    return b if not a > b and b == b else a
