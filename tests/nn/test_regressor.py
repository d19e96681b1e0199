import torch
from torch import Tensor

from deformer_core.body.topology import BodyTopology
from deformer_core.geometry.camera import project_crop
from deformer_core.nn.deformable_attention import SAMPLERS
from deformer_core.nn.regressor import BodyRegressor, normalize_keypoints, sample_evidence


def people(count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Keypoints, boxes and global vectors."""
    keypoints = torch.cat([torch.rand(count, 17, 2) * 1.2 - 0.6, torch.rand(count, 17, 1)], -1)
    return keypoints, torch.tensor([[0.1, -0.1, 0.3]]).expand(count, 3), torch.rand(count, 12)


def make(body: BodyTopology) -> BodyRegressor:
    return BodyRegressor(body, pooled_channels=12, hidden=32, blocks=2, pooled_features=8).eval()


def test_a_posed_body_in_model_space(body: BodyTopology, seed: int) -> None:
    out = make(body)(*people())
    n_bones = len(body.rig.bone_names)
    assert out["rotations"].shape == (4, n_bones, 3, 3) and out["shape"].shape[0] == 4
    assert out["joints"].shape == (4, 23, 3) and out["vertices_coarse"].shape == (4, 615, 3)
    identity = out["rotations"] @ out["rotations"].transpose(-1, -2)
    torch.testing.assert_close(identity, torch.eye(3).expand_as(identity), atol=1e-5, rtol=0)
    hips = out["joints"][:, list(body.hips)].mean(1)
    torch.testing.assert_close(hips, torch.zeros(4, 3), atol=1e-5, rtol=0)
    assert (out["camera"][:, 0] > 0).all()


def test_points_without_score_do_not_matter(body: BodyTopology, seed: int) -> None:
    keypoints, box, pooled = people()
    keypoints[:, 5, 2] = 0
    moved = keypoints.clone()
    moved[:, 5, :2] += 10
    regressor = make(body)
    for name, value in regressor(keypoints, box, pooled).items():
        torch.testing.assert_close(regressor(moved, box, pooled)[name], value)


def test_finite_without_any_keypoint(body: BodyTopology, seed: int) -> None:
    keypoints, box, pooled = people()
    keypoints = torch.zeros_like(keypoints).requires_grad_()
    out = make(body)(keypoints, box, pooled)
    sum(value.sum() for value in out.values()).backward()
    assert all(value.isfinite().all() for value in out.values())
    assert keypoints.grad is not None and keypoints.grad.isfinite().all()


def test_normalised_keypoints_forget_place_and_size(seed: int) -> None:
    keypoints, _, _ = people()
    keypoints[..., 2] = 1
    moved = keypoints.clone()
    moved[..., :2] = keypoints[..., :2] * 0.7 + torch.tensor([0.2, -0.1])
    before, after = normalize_keypoints(keypoints), normalize_keypoints(moved)
    torch.testing.assert_close(after.points, before.points, atol=0.02, rtol=0)  # but for the weak prior
    torch.testing.assert_close(after.extent, before.extent * 0.7, atol=0.01, rtol=0)


def test_fresh_camera_puts_the_template_on_the_keypoints(body: BodyTopology, seed: int) -> None:
    """Untrained, the body already lies about where the keypoints are, as large as they are."""
    regressor = make(body)
    level = body.levels["coarse"]
    joints = torch.from_numpy(level.joint_regressor.apply(level.vertices))[None]
    box = torch.tensor([[0.0, 0.0, 0.2]])
    true = project_crop(joints, torch.tensor([[0.9, 0.15, -0.1]]), box)[:, :17]
    keypoints = torch.cat([true, torch.ones(1, 17, 1)], -1)
    out = regressor(keypoints, box, None)
    assert (project_crop(out["joints"], out["camera"], box)[:, :17] - true).norm(dim=-1).mean() < 0.5


def test_image_features_are_optional(body: BodyTopology, seed: int) -> None:
    keypoints, box, pooled = people()
    regressor = make(body)
    with_image, without = regressor(keypoints, box, pooled), regressor(keypoints, box, None)
    assert (with_image["rotations"] - without["rotations"]).abs().max() > 1e-6
    blind = BodyRegressor(body, 12, hidden=32, blocks=2, pooled_features=0).eval()
    torch.testing.assert_close(blind(keypoints, box, pooled), blind(keypoints, box, None))


def test_evidence_is_what_the_deepest_maps_hold_at_the_keypoints(seed: int) -> None:
    """On maps that are linear in x and y bilinear samples are exact; both samplers read the same."""
    maps = []
    for size in (64, 32, 16, 8):
        centres = (torch.arange(size) + 0.5) * 2 / size - 1
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        maps.append(torch.stack([x, y, x - 2 * y])[None].expand(3, -1, -1, -1))
    keypoints = torch.cat([torch.rand(3, 17, 2) * 1.6 - 0.8, torch.rand(3, 17, 1)], -1)
    x, y = keypoints[..., 0], keypoints[..., 1]
    once = torch.stack([x, y, x - 2 * y], -1)
    for sampler in SAMPLERS.values():
        found = sample_evidence(maps, keypoints, sampler)
        torch.testing.assert_close(found, torch.cat([once, once], -1), atol=1e-5, rtol=0)


def test_evidence_starts_silent_and_is_learned(body: BodyTopology, seed: int) -> None:
    keypoints, box, pooled = people()
    evidence = torch.rand(4, 17, 20)
    regressor = BodyRegressor(body, 12, hidden=32, blocks=2, evidence_channels=20, keypoint_features=6).eval()
    blind, seeing = (regressor(keypoints, box, pooled, given)["joints"] for given in (None, evidence))
    torch.testing.assert_close(blind, seeing)
    seeing.square().sum().backward()
    assert regressor.join.weight.grad is not None and regressor.join.weight.grad.abs().max() > 0
