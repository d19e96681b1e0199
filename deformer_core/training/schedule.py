"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.01) -> float:
    """Linear warm-up to `peak`, then a half cosine down to `floor * peak` at `steps` (and there after it)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


def ema_decay(step: int, decay: float) -> float:
    """Decay of the weights' moving average, short at first so that the random start is soon forgotten."""
    return min(decay, (step + 1) / (step + 10))
