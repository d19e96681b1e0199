from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformer_core.body.assets import load_body
from deformer_core.body.topology import BodyTopology
from deformer_core.data.retarget import pose_sampler
from deformer_core.errors import InputError
from tests.body.made_smpl import make_smpl

# A limb's two ends as bones of SMPL and of Anny.
LIMBS = {
    "left_shoulder left_elbow": "upperarm01.L lowerarm01.L",
    "right_elbow right_wrist": "lowerarm01.R wrist.R",
    "left_hip left_knee": "upperleg01.L lowerleg01.L",
    "right_knee right_ankle": "lowerleg01.R foot.R",
}


@pytest.fixture
def smpl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BodyTopology:
    make_smpl(tmp_path / "smpl")
    monkeypatch.setenv("DEFORMER_SMPL", str(tmp_path / "smpl"))
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "cache"))
    return load_body("smpl")


def directions(body: BodyTopology, rotations: np.ndarray, limbs: list[str]) -> np.ndarray:
    """(N, L, 3) of posed limbs."""
    world = rotations.astype(np.float64)
    for bone, parent in enumerate(body.rig.bone_parents):
        if parent >= 0:
            world[:, bone] = world[:, parent] @ world[:, bone]
    found = []
    for limb in limbs:
        head, tip = (body.rig.bone_names.index(bone) for bone in limb.split())
        rest = body.rig.bone_heads[tip] - body.rig.bone_heads[head]
        found.append(world[:, head] @ (rest / np.linalg.norm(rest)))
    return np.stack(found, 1)


@pytest.mark.parametrize("recorded", [False, True])
def test_limbs_point_where_annys_do(
    smpl: BodyTopology, body: BodyTopology, seed: int, recorded: bool, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("mocap_folder") if recorded else None
    drawn, shape, kinds = pose_sampler(smpl, folder).sample(np.random.default_rng(seed), 64)
    original, _, same_kinds = pose_sampler(body, folder).sample(np.random.default_rng(seed), 64)
    assert drawn.shape == (64, 24, 3, 3) and shape.shape == (64, 10) and kinds == same_kinds
    np.testing.assert_allclose(drawn @ drawn.swapaxes(2, 3), np.broadcast_to(np.eye(3), drawn.shape), atol=1e-5)
    ours, theirs = directions(smpl, drawn, list(LIMBS)), directions(body, original, list(LIMBS.values()))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(drawn[:, 0], original[:, 0], atol=1e-6)


def test_other_rigs_are_refused(body: BodyTopology) -> None:
    other = replace(body, name="robot", rig=replace(body.rig, bone_names=("base", "arm")))
    with pytest.raises(InputError, match="body 'robot'"):
        pose_sampler(other)
