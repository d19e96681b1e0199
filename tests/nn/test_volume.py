"""Joints located in a volume: the mean of its weights, and what reads them."""

import pytest
import torch

from deformer_core.body.topology import BodyTopology
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.nn.config import DeFormerConfig
from deformer_core.nn.deformer import DeFormer
from deformer_core.nn.regressor import BodyRegressor
from deformer_core.nn.volume import DEPTHS, REACH, JointVolume


def peaked(volume: JointVolume, plane: int) -> JointVolume:
    """Weighs one plane of every joint above all others, and of the map what its first channel says."""
    with torch.no_grad():
        for layer in (volume.shallow, volume.deep, volume.weigh):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
        volume.shallow.weight[0, 0] = 1
        volume.weigh.weight.view(volume.n_joints, DEPTHS, -1)[:, :, 0] = 1
        bias = volume.weigh.bias
        assert bias is not None
        bias.view(volume.n_joints, DEPTHS)[:, plane] = 200
    return volume


@pytest.mark.parametrize(("row", "column", "plane"), [(3, 12, 0), (15, 0, 5), (8, 8, 7)])
def test_a_peak_is_located_at_its_cells_centre(row: int, column: int, plane: int) -> None:
    shallow, deep = torch.zeros(2, 4, 16, 16), torch.zeros(2, 6, 8, 8)
    shallow[:, 0, row, column] = 200
    located = peaked(JointVolume((4, 6), 5, 3), plane)(shallow, deep)
    x, y = (column + 0.5) / 8 - 1, (row + 0.5) / 8 - 1
    z = REACH * ((plane + 0.5) * 2 / DEPTHS - 1)
    torch.testing.assert_close(located[..., :3], torch.tensor([x, y, z]).expand(2, 3, 3), atol=1e-5, rtol=0)
    assert (located[..., 3] < 0.01).all()


def test_even_weights_are_the_middle_and_unsure() -> None:
    volume = JointVolume((4, 6), 5, 3)
    torch.nn.init.zeros_(volume.weigh.weight)
    torch.nn.init.zeros_(volume.weigh.bias)  # type: ignore[arg-type]
    located = volume(torch.rand(1, 4, 16, 16), torch.rand(1, 6, 8, 8))
    torch.testing.assert_close(located[..., :3], torch.zeros(1, 3, 3), atol=1e-5, rtol=0)
    planes = REACH * ((torch.arange(DEPTHS) + 0.5) * 2 / DEPTHS - 1)
    torch.testing.assert_close(located[..., 3], planes.square().mean().sqrt().expand(1, 3))


def test_gradient_agrees_with_differences(seed: int) -> None:
    volume = JointVolume((4, 6), 5, 2).double()
    torch.nn.init.normal_(volume.weigh.weight)
    shallow = torch.rand(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    deep = torch.rand(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(volume, (shallow, deep))


def test_located_joints_start_silent_and_are_learned(body: BodyTopology, seed: int) -> None:
    keypoints = torch.cat([torch.rand(4, 17, 2) - 0.5, torch.rand(4, 17, 1)], -1)
    box, located = torch.tensor([[0.1, -0.1, 0.3]]).expand(4, 3), torch.rand(4, 23, 4)
    regressor = BodyRegressor(body, 12, hidden=32, blocks=2, located=True).eval()
    blind, seeing = (regressor(keypoints, box, located=given)["joints"] for given in (None, located))
    torch.testing.assert_close(blind, seeing)
    seeing.square().sum().backward()
    assert regressor.place is not None
    gradient = regressor.place[-1].weight.grad
    assert gradient is not None and gradient.abs().max() > 0


def test_a_model_with_a_volume_reads_it_from_the_maps_alone(body: BodyTopology, seed: int) -> None:
    """Columns outside of a narrow network's maps are allowed for; samples without an image have no volume."""
    config = DeFormerConfig(backbone="hrformer_small", volume_width=8, image_size=128, image_width=96)
    model = DeFormer(config, body).eval()
    channels = model.backbone.channels
    maps = tuple(torch.rand(2, c, 128 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True))
    keypoints = torch.rand(2, 17, 3)
    seen = BackboneOutput(maps, torch.rand(2, model.backbone.pooled_channels), keypoints)  # type: ignore[arg-type]
    box = torch.tensor([[0.0, 0.0, 0.2]]).expand(2, 3)
    assert model.volume is not None
    located, plain = model.regress(seen, box)["located"], model.volume(*maps[2:])
    torch.testing.assert_close(located[..., 0] * 4 / 3, plain[..., 0])
    torch.testing.assert_close(located[..., 1:], plain[..., 1:])
    assert "located" not in model.regress(seen._replace(maps=()), box)  # type: ignore[arg-type]
