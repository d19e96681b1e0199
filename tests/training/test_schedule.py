import pytest

from deformer_core.training.schedule import ema_decay, learning_rate
from deformer_core.training.settings import OptimizerConfig


def test_warm_up_then_half_a_cosine() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup=100)
    rates = [learning_rate(step, 1000, config) for step in range(1100)]
    assert rates[0] == pytest.approx(0.02) and rates[99] == rates[100] == 2.0
    assert rates[550] == pytest.approx(2.0 * (0.01 + 0.99 / 2))
    assert rates[1000] == rates[1099] == pytest.approx(0.02)
    assert all(a >= b for a, b in zip(rates[100:], rates[101:])) and all(
        a < b for a, b in zip(rates[:99], rates[1:100])
    )


def test_no_warm_up() -> None:
    assert learning_rate(0, 10, OptimizerConfig(learning_rate=1.0, warmup=0)) == 1.0


def test_steps_down() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup=2, schedule="step", step_at=(0.5, 0.75), step_factor=0.1)
    rates = [learning_rate(step, 8, config) for step in range(9)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
    constant = OptimizerConfig(learning_rate=1.0, warmup=0, schedule="step", step_at=())
    assert {learning_rate(step, 8, constant) for step in range(20)} == {1.0}


def test_average_forgets_the_start_soon() -> None:
    assert ema_decay(0, 0.999) == pytest.approx(0.1) and ema_decay(10**6, 0.999) == 0.999
