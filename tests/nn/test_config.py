from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from deformer_core.config import load_config
from deformer_core.errors import InputError
from deformer_core.nn.config import DeFormerConfig


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    steps: int
    inner: Inner = Inner()
    sizes: tuple[int, ...] = ()
    span: tuple[float, float] = (0, 1)
    kinds: list[Inner] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"
    either: int | str = 0
    flag: bool = False
    free: Any = None


def test_nested_values() -> None:
    text = """
    steps: 3
    inner: {rate: 1, name: null}
    sizes: [4, 8]
    span: [1, 2.5]
    kinds: [{rate: 2}]
    table: {x: 1}
    mode: b
    either: word
    flag: true
    free: [whatever]
    """
    assert load_config(Outer, yaml.safe_load(text)) == Outer(
        3, Inner(1.0), (4, 8), (1.0, 2.5), [Inner(2.0)], {"x": 1.0}, "b", "word", True, ["whatever"]
    )
    assert isinstance(load_config(Outer, {"steps": 3, "inner": {"rate": 1}}).inner.rate, float)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"step": 1}, "run.yaml has no key 'step': did you mean 'steps'?"),
        ({"steps": 1, "inner": {"rat": 1}}, "run.yaml.inner has no key 'rat': did you mean 'rate'?"),
        ({}, "run.yaml is incomplete.*'steps'"),
        ({"steps": True}, "run.yaml.steps must be an integer, not True"),
        ({"steps": 1.5}, "must be an integer, not 1.5"),
        ({"steps": None}, "must be an integer, not nothing"),
        ({"steps": 1, "inner": {"rate": "1e-4"}}, "must be a number.*write 1.0e-4"),
        ({"steps": 1, "inner": 3}, "run.yaml.inner must be a mapping"),
        ({"steps": 1, "sizes": 4}, "run.yaml.sizes must be a list"),
        ({"steps": 1, "sizes": [1, "x"]}, r"run.yaml.sizes\[1\] must be an integer"),
        ({"steps": 1, "span": [1]}, "must have 2 entries, not 1"),
        ({"steps": 1, "table": {"x": "y"}}, "run.yaml.table.x must be a number"),
        ({"steps": 1, "mode": "c"}, "must be one of 'a', 'b', not 'c'"),
        ({"steps": 1, "either": 1.5}, "must be an integer or a text"),
        ({"steps": 1, "flag": 1}, "must be true or false, not 1"),
        ([1], "run.yaml must be a mapping"),
    ],
)
def test_mistakes_are_named(mapping: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(Outer, mapping, "run.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 50}, "dim 50 is not a multiple of heads 4"),
        ({"layers": 0}, "1 or more"),
        ({"maps": [8, 64]}, "strides out of"),
        ({"maps": []}, "strides out of"),
        ({"attention": "fast"}, "unknown attention 'fast': use one of auto, dense, tiles"),
        ({"sampling": "fast"}, "unknown sampling"),
        ({"query_level": "fine"}, "use one of coarse, middle, full"),
    ],
)
def test_models_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(DeFormerConfig, changes)
