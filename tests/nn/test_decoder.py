from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deformer_core.nn.deformer import DeFormer

Build = Callable[..., DeFormer]
Crops = tuple[Tensor, Tensor]


def watch_references(model: DeFormer) -> list[Tensor]:
    """Collects the reference points that each layer's image attention is given."""
    seen: list[Tensor] = []
    for layer in model.decoder.layers:
        layer.attend_image.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    return seen


def test_untrained_decoder_returns_the_initial_reconstruction(build: Build, crops: Crops) -> None:
    out = build(awake=False)(*crops)
    initial, *layers = out["layers"]
    assert len(layers) == 2
    for layer in layers:
        for name in ("vertices_coarse", "joints", "camera"):
            torch.testing.assert_close(layer[name], initial[name], atol=1e-5, rtol=0)


def test_references_follow_the_feedback(build: Build, crops: Crops) -> None:
    model = build(layers=3)
    seen = watch_references(model)
    out = model(*crops)
    assert len(out["layers"]) == 4
    assert all((a != b).any() for a, b in zip(seen, seen[1:]))


def test_without_feedback_references_stay(build: Build, crops: Crops) -> None:
    model = build(layers=3, feedback=False)
    seen = watch_references(model)
    out = model(*crops)
    assert len(seen) == 3 and all(torch.equal(seen[0], other) for other in seen)
    assert len(out["layers"]) == 2  # the initial and the one correction


def test_every_layer_is_centred(build: Build, crops: Crops, body) -> None:
    out = build()(*crops)
    regressor = body.levels["coarse"].joint_regressor
    for layer in out["layers"]:
        hips = regressor.apply(layer["vertices_coarse"])[:, list(body.hips)].mean(1)
        assert hips.abs().max() < 1e-5


def test_layers_learn_apart(build: Build, crops: Crops) -> None:
    """A layer's loss does not reach the displacements of the layer before, nor the initial regressor."""
    model = build()
    out = model(*crops)
    out["layers"][2]["vertices_coarse"].square().sum().backward()
    first, second = model.decoder.layers
    assert first.correct.displace[-1].weight.grad is None
    assert second.correct.displace[-1].weight.grad is not None
    assert model.regressor.rotations.weight.grad is None
    assert first.attend_self.project_in.weight.grad is not None  # the queries themselves do connect


@pytest.mark.parametrize(
    "changes", [{"attention": "tiles"}, {"sampling": "gather"}, {"attention": "triton", "sampling": "triton"}]
)
def test_executions_are_interchangeable(build: Build, crops: Crops, changes: dict[str, str]) -> None:
    model, other = build(attention="dense", sampling="grid"), build(**changes)
    other.load_state_dict(model.state_dict())
    for name in ("vertices_full", "camera"):
        torch.testing.assert_close(model(*crops)[name], other(*crops)[name], atol=1e-5, rtol=0)


def test_sparsity_and_maps_matter(build: Build, crops: Crops) -> None:
    model = build()
    free = build(sparse=False)
    free.load_state_dict(model.state_dict())
    assert (model(*crops)["vertices_coarse"] - free(*crops)["vertices_coarse"]).abs().max() > 1e-6
    single = build(maps=(16,))
    out = single(*crops)
    assert out["vertices_full"].isfinite().all()
    assert len(single.decoder.neck.maps) == 1
