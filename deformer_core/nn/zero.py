"""Layers that give zero until they are trained: what a network knew before they were added is kept."""

from __future__ import annotations

from torch import nn


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that is zero until it is trained."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_ended_mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A two-layer network that is zero until it is trained."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), zero_linear(hidden, outputs))
