"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from deformer_core.training.settings import OptimizerConfig

FLOOR = 0.01
"""Of the cosine, in shares of the configured rate."""


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up to the configured rate, then as `OptimizerConfig.schedule` says; constant from `steps` on."""
    peak, warmup = config.learning_rate, config.warmup
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "step":
        return peak * config.step_factor ** sum(step >= share * steps for share in config.step_at)
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))


def ema_decay(step: int, decay: float) -> float:
    """Decay of the weights' moving average, short at first so that the random start is soon forgotten."""
    return min(decay, (step + 1) / (step + 10))
