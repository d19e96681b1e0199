import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn

from deformer_core.errors import InputError
from deformer_core.training.deepspeed_engine import DeepSpeedEngine
from deformer_core.training.engine import Engine, PlainEngine, parameter_groups
from deformer_core.training.settings import OptimizerConfig


class Toy(nn.Module):
    """Shaped as a task: the model within, its parts named as the real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.regressor = nn.Linear(4, 8)
        self.model.backbone = nn.Linear(4, 4)
        self.model.decoder = nn.Sequential(nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": self.model.decoder(self.model.regressor(self.model.backbone(x))).square().mean()}


def train(engine: Engine, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
        total = engine(x)["total"]
        engine.backward(total)
        engine.step(0.05 / (step + 1))
        losses.append(float(total.detach()))
    return losses


def test_groups_freeze_and_slow_down() -> None:
    toy = Toy()
    groups = parameter_groups(toy, OptimizerConfig(regressor_rate=0.1, backbone_rate=0.0, weight_decay=0.3))
    assert sorted((group["rate"], group["weight_decay"]) for group in groups) == [
        (0.1, 0),
        (0.1, 0.3),
        (1, 0),
        (1, 0.3),
    ]
    assert not any(p.requires_grad for p in toy.model.backbone.parameters())
    assert sum(len(group["params"]) for group in groups) == 4


def test_named_modules_stay_as_they_are() -> None:
    toy = Toy()
    engine = PlainEngine(toy, OptimizerConfig(backbone_rate=1.0, frozen=("regressor", "decoder.1")))
    before = copy.deepcopy(toy.state_dict())
    train(engine, 2)
    changed = {name for name, value in toy.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"model.backbone.weight", "model.backbone.bias"}
    with pytest.raises(InputError, match=r"no module 'decoder.l'; the nearest is 'decoder.\d'"):
        parameter_groups(Toy(), OptimizerConfig(frozen=("decoder.l",)))


def test_clipping_and_rates_reach_the_optimizer() -> None:
    engine = PlainEngine(Toy(), OptimizerConfig(clip=1e-3, regressor_rate=0.5))
    engine.backward(engine(torch.randn(3, 4))["total"])
    norm = engine.step(0.01)
    assert norm > 1e-3 and all(p.grad is None for p in engine.module.parameters())
    assert {group["lr"] for group in engine.optimizer.param_groups} == {0.005, 0.01}


def test_no_step_on_a_gradient_that_is_not_finite() -> None:
    engine = PlainEngine(Toy(), OptimizerConfig())
    before = copy.deepcopy(engine.module.state_dict())
    engine.backward(engine(torch.full((3, 4), torch.inf))["total"])
    assert not torch.isfinite(torch.tensor(engine.step(0.1)))
    assert all(torch.equal(value, before[name]) for name, value in engine.module.state_dict().items())


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("clip", [0.05, 1e9])
def test_deepspeed_gives_the_same_numbers(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = OptimizerConfig(clip=clip, regressor_rate=0.1, backbone_rate=1.0)
    toy = Toy()
    plain, deep = PlainEngine(copy.deepcopy(toy), config), DeepSpeedEngine(copy.deepcopy(toy), config, 6)
    assert train(plain, 5) == pytest.approx(train(deep, 5), abs=1e-6)
    for (name, a), b in zip(plain.module.named_parameters(), deep.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)
