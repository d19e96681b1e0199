from pathlib import Path

import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch
from deformer_core.errors import InputError
from deformer_core.training.lifting import LiftingConfig, LiftingMLP, encode_keypoints, load_lifting, save_lifting


@pytest.fixture
def model(body: BodyTopology, seed: int) -> LiftingMLP:
    return LiftingMLP(LiftingConfig(width=16, blocks=1), body).eval()


def test_output_is_centred_on_the_pelvis(model: LiftingMLP, people: Batch, body: BodyTopology) -> None:
    out = model(people["keypoints"], people["box"])
    joints = model.regressor @ out["vertices_coarse"]
    assert (joints[:, list(body.hips)].mean(1).abs() < 1e-6).all()
    assert (out["camera"][:, 0] > 0).all()


def test_saved_and_loaded_in_half_precision(
    model: LiftingMLP, people: Batch, body: BodyTopology, tmp_path: Path
) -> None:
    save_lifting(tmp_path / "lifting.safetensors", model)
    loaded = load_lifting(tmp_path / "lifting.safetensors", body)
    a, b = (each(people["keypoints"], people["box"])["vertices_coarse"] for each in (model, loaded))
    torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


def test_scores_of_zero_stay_finite(people: Batch) -> None:
    keypoints = people["keypoints"].clone()
    keypoints[..., 2] = 0
    assert torch.isfinite(encode_keypoints(keypoints, people["box"])).all()


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 10])
def test_what_is_no_baseline(content: bytes | None, body: BodyTopology, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="x.safetensors"):
        load_lifting(path, body)
