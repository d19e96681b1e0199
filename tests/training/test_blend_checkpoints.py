from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint, save_checkpoint
from deformer_core.config import load_config
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from tests.training.conftest import NETWORK
from training.blend import main


@pytest.fixture
def pair(body: BodyTopology, tmp_path: Path, seed: int) -> tuple[Path, Path]:
    config = load_config(DeFormerConfig, NETWORK)
    paths = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    for number, path in enumerate(paths):
        torch.manual_seed(seed + number)
        save_checkpoint(path, DeFormer(config, body), {}, {})
    return paths


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_weights_lie_between_those_of_both(pair: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    out = tmp_path / "blend.safetensors"
    assert main([*map(str, pair), "--share", str(share), "--out", str(out)]) == 0
    before, after, found = (load_checkpoint(path).state_dict() for path in (*pair, out))
    for name, value in found.items():
        torch.testing.assert_close(value, before[name] + share * (after[name] - before[name]), atol=2e-3, rtol=2e-3)


def test_two_networks_cannot_be_blended(
    pair: tuple[Path, Path], body: BodyTopology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(load_config(DeFormerConfig, NETWORK), dim=32)
    save_checkpoint(tmp_path / "other.safetensors", DeFormer(config, body), {}, {})
    out = tmp_path / "blend.safetensors"
    assert main([str(pair[0]), str(tmp_path / "other.safetensors"), "--out", str(out)]) == 2
    assert "different networks" in capsys.readouterr().err and not out.exists()


def test_a_volume_that_came_later_is_kept(
    pair: tuple[Path, Path], body: BodyTopology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(load_config(DeFormerConfig, NETWORK), volume_width=8)
    after, out = tmp_path / "grown.safetensors", tmp_path / "blend.safetensors"
    save_checkpoint(after, DeFormer(config, body), {}, {})
    assert main([str(pair[0]), str(after), "--share", "0", "--out", str(out)]) == 0
    grown, found = (load_checkpoint(path).state_dict() for path in (after, out))
    before = load_checkpoint(pair[0]).state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, before.get(name, grown[name]), atol=2e-3, rtol=2e-3)
    assert found.keys() - before.keys() and main([str(after), str(pair[0]), "--out", str(out)]) == 2
