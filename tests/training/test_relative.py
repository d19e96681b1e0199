import copy

import pytest
import torch
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.training.deepspeed_engine import DeepSpeedEngine
from deformer_core.training.engine import parameter_groups
from deformer_core.training.relative import RelativeAdamW
from deformer_core.training.settings import OptimizerConfig


def descend(conv: nn.Conv2d, loss: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Steps on one batch."""
    x = torch.randn(4, conv.in_channels, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(conv(x)).backward()
        optimizer.step()


class Loss(nn.Module):
    """Sees a channel of the convolution times `scale`."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, maps: Tensor) -> Tensor:
        return ((maps * self.scale[:, None, None]).tanh() - 0.5).square().mean()


def test_channels_of_any_size_learn_alike() -> None:
    """A channel made a thousand times larger, and its output as much smaller, is the same network; it stays so."""
    torch.manual_seed(3)
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    one = nn.Conv2d(2, 3, 3, bias=False, dtype=torch.float64)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.weight /= scale[:, None, None, None]
    for conv, seen in ((one, torch.ones_like(scale)), (other, scale)):
        group = {"params": [conv.weight], "relative": True}
        descend(conv, Loss(seen), RelativeAdamW([group], lr=0.01, weight_decay=0.0, eps=1e-16), 30)
    torch.testing.assert_close(other.weight * scale[:, None, None, None], one.weight, rtol=1e-6, atol=0)


def test_the_first_step_is_the_rate_times_the_size() -> None:
    """Adam's first step is the learning rate, up or down."""
    torch.manual_seed(4)
    conv = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    before = copy.deepcopy(conv)
    group = {"params": list(conv.parameters()), "relative": True}
    descend(conv, Loss(torch.ones(3, dtype=torch.float64)), RelativeAdamW([group], lr=0.01, weight_decay=0.0), 1)
    for channel in range(3):
        size = before.weight[channel].square().mean().sqrt()
        moved = (conv.weight[channel] - before.weight[channel]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * size.item()), rtol=1e-4, atol=0)
    moved = (conv.bias - before.bias).abs()
    torch.testing.assert_close(moved, 0.01 * before.bias.square().mean().sqrt().expand(3), rtol=1e-4, atol=0)


def test_other_groups_are_adamw() -> None:
    torch.manual_seed(5)
    loss = Loss(torch.ones(3, dtype=torch.float64))
    plain = nn.Conv2d(2, 3, 3, dtype=torch.float64)
    ours = copy.deepcopy(plain)
    unused = nn.Parameter(torch.ones(2))
    descend(plain, loss, torch.optim.AdamW(plain.parameters(), lr=0.01), 5)
    groups = [{"params": ours.parameters(), "relative": False}, {"params": [unused], "relative": True}]
    descend(ours, loss, RelativeAdamW(groups, lr=0.01), 5)
    assert torch.equal(ours.weight, plain.weight) and torch.equal(ours.bias, plain.bias)
    assert torch.equal(unused, torch.ones(2))


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"backbone": nn.Conv2d(1, 2, 3), "regressor": nn.Linear(2, 2)})


def test_the_backbone_alone_is_relative_and_does_not_decay() -> None:
    config = OptimizerConfig(backbone_rate=2.0, backbone_relative=True, weight_decay=0.3)
    task = Task()
    groups = parameter_groups(task, config)
    relative = {id(p) for group in groups if group["relative"] for p in group["params"]}
    assert relative == {id(p) for p in task.model["backbone"].parameters()}
    assert {(group["rate"], group["weight_decay"]) for group in groups if group["relative"]} == {(2.0, 0.0)}
    assert {group["weight_decay"] for group in groups if not group["relative"]} == {0.0, 0.3}


def test_deepspeed_says_that_it_cannot() -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    with pytest.raises(InputError, match="backbone_relative is not to be had with DeepSpeed: use --engine plain"):
        DeepSpeedEngine(Task(), OptimizerConfig(backbone_rate=1.0, backbone_relative=True), 1)
