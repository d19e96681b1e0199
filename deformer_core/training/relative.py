"""AdamW whose steps are measured in the size of what they change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def size(parameter: Tensor) -> Tensor:
    """Root mean square: of a matrix or kernel by output channel (its other dimensions stay, as ones), else of all."""
    others = tuple(range(1, parameter.ndim)) if parameter.ndim > 1 else ()
    return parameter.square().mean(others, keepdim=True).sqrt()


class RelativeAdamW(torch.optim.AdamW):
    """AdamW; in groups with `relative`, the step of a parameter is multiplied by its `size`.

    For convolutions into which batch normalisation was folded: their channels differ in size a thousandfold, and a step
    that is nothing to one destroys another. (By layer: You et al., "Large batch training of convolutional networks",
    2017, equation 6; here by channel, and of Adam's step, not of the gradient.)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        relative = [p for group in self.param_groups if group.get("relative") for p in group["params"]]
        before = [p.clone() for p in relative]
        loss = super().step(closure)
        for parameter, old in zip(relative, before, strict=True):
            parameter.copy_(torch.lerp(old, parameter, size(old)))
        return loss
