"""The model on a body of SMPL's format: other sizes, other bones, upsampling and posing of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deformer_core.body.assets import load_body
from deformer_core.body.topology import BodyTopology
from deformer_core.checkpoint import load_checkpoint, read_checkpoint_info, save_checkpoint
from deformer_core.errors import InputError
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from tests.body.made_smpl import make_smpl

TINY = DeFormerConfig(
    body="smpl", backbone="movenet_lightning", dim=8, heads=1, ffn=8, layers=2, points=1, regressor_hidden=16,
    regressor_blocks=1,
)  # fmt: skip
LEVELS = {"coarse": 431, "middle": 1723, "full": 6890}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smpl")
    make_smpl(folder)
    return folder


@pytest.fixture
def smpl(folder: Path, monkeypatch: pytest.MonkeyPatch) -> BodyTopology:
    monkeypatch.setenv("DEFORMER_SMPL", str(folder))
    monkeypatch.setenv("DEFORMER_CACHE", str(folder / "cache"))
    return load_body("smpl")


@pytest.fixture
def crops(seed: int) -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 192, 192) * 255, torch.tensor([[0.1, -0.2, 0.2], [0.0, 0.1, 0.4]])


@pytest.mark.parametrize("query_level", LEVELS)
def test_forward_and_backward(smpl: BodyTopology, crops: tuple[Tensor, Tensor], query_level: str) -> None:
    model = DeFormer.from_config(replace(TINY, query_level=query_level, layers=1), pretrained_backbone=False)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    out = model(*crops)
    assert out["layers"][0]["rotations"].shape == (2, 24, 3, 3) and out["layers"][0]["shape"].shape == (2, 10)
    first = list(LEVELS).index(query_level)
    for number, (name, size) in enumerate(LEVELS.items()):
        if number >= first:
            assert out[f"vertices_{name}"].shape == (2, size, 3) and out[f"vertices_{name}"].isfinite().all()
        else:
            assert f"vertices_{name}" not in out
    assert out["joints"].shape == (2, 23, 3)
    # The middle of the hips of the full mesh, which is upsampled, is the origin.
    regressed = smpl.levels["full"].joint_regressor.apply(out["vertices_full"])
    torch.testing.assert_close(regressed, out["joints"], atol=1e-5, rtol=0)
    assert out["joints"][:, list(smpl.hips)].mean(1).abs().max() < 1e-5
    (out["vertices_full"].square().sum() + out["layers"][0]["joints"].square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.regressor.rotations.parameters())


def test_fresh_recovery_is_upsampling_alone(smpl: BodyTopology, crops: tuple[Tensor, Tensor]) -> None:
    out = DeFormer.from_config(TINY, pretrained_backbone=False).eval()(*crops)
    full = smpl.upsample["full"].apply(smpl.upsample["middle"].apply(out["layers"][-1]["vertices_coarse"]))
    shift = out["vertices_full"] - full
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-5, rtol=0)


def test_checkpoint_names_its_body(
    smpl: BodyTopology, crops: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DeFormer.from_config(TINY, pretrained_backbone=False).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, {}, {})
    info = read_checkpoint_info(path)
    assert (info.body_name, info.body_hash, info.body().name) == ("smpl", smpl.content_hash, "smpl")
    with torch.no_grad():
        before, after = model(*crops)["vertices_full"], load_checkpoint(path)(*crops)["vertices_full"]
    assert np.abs(before - after).max() < 5e-3  # 16 bits
    # A body of other numbers, though of the same name, is not taken for it; without files, they are asked for.
    make_smpl(tmp_path / "other", seed=3)
    monkeypatch.setenv("DEFORMER_SMPL", str(tmp_path / "other"))
    with pytest.raises(InputError, match=f"body 'smpl' {smpl.content_hash}"):
        load_checkpoint(path)
    monkeypatch.delenv("DEFORMER_SMPL")
    with pytest.raises(InputError, match="set DEFORMER_SMPL"):
        load_checkpoint(path)
