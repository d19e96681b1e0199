import pytest
import torch
from torch import Tensor

from deformer_core.errors import InputError
from deformer_core.nn.deformable_attention import (
    SAMPLERS,
    SLOTS_AT_ONCE,
    DeformableMeshAttention,
    sample_gather,
    sample_grid,
)

SHAPES = ((9, 12), (5, 6), (2, 3))


def example(
    batch: int = 2, heads: int = 3, dim: int = 4, points: int = 2, slots: int = 50, reach: float = 1.3
) -> tuple[list[Tensor], Tensor, Tensor]:
    values = [torch.randn(batch, heads * dim, h, w) for h, w in SHAPES]
    places = (torch.rand(batch, heads, len(SHAPES), points, 2, slots) * 2 - 1) * reach
    return values, places, torch.rand(batch, heads, len(SHAPES), points, slots)


@pytest.mark.parametrize("reach", [0.5, 1.3, 1e4])
@pytest.mark.parametrize("slots", [50, SLOTS_AT_ONCE, 2 * SLOTS_AT_ONCE + 7])
def test_samplers_agree(reach: float, slots: int, seed: int) -> None:
    values, places, weights = example(reach=reach, slots=slots)
    places[..., 0] = 1.0  # the very edge
    places[..., 1] = 1 + 1 / SHAPES[0][1]  # where the last pixel's tent ends
    torch.testing.assert_close(
        sample_grid(values, places, weights), sample_gather(values, places, weights), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_gradients(name: str, seed: int) -> None:
    values, places, weights = example(batch=1, heads=2, dim=2, points=1, slots=6)
    # Away from pixel borders, where the slope jumps.
    for level, (h, w) in enumerate(SHAPES):
        for axis, size in enumerate((w, h)):
            pixels = ((places[:, :, level, :, axis] + 1) * size - 1) / 2
            pixels = pixels.floor() + (pixels - pixels.floor()).clamp(0.05, 0.95)
            places[:, :, level, :, axis] = (2 * pixels + 1) / size - 1
    inputs = [x.double().requires_grad_() for x in (places, weights, *values)]
    sample = SAMPLERS[name]
    assert torch.autograd.gradcheck(lambda p, w, *v: sample(v, p, w), inputs)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pixel_centres_give_pixels_and_the_outside_nothing(name: str, seed: int) -> None:
    h, w = 4, 6
    value = torch.randn(1, 5, h, w)
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([(2 * xs.flatten() + 1) / w - 1, (2 * ys.flatten() + 1) / h - 1])
    weights = torch.full((1, 1, 1, 1, h * w), 2.0)
    inside = SAMPLERS[name]([value], places[None, None, None, None], weights)
    torch.testing.assert_close(inside, 2 * value.flatten(2))
    outside = SAMPLERS[name]([value], places[None, None, None, None] + 2.5, weights)
    assert (outside == 0).all()


def make(sampling: str = "grid", dim: int = 12, heads: int = 3) -> DeformableMeshAttention:
    """With weights that matter, unlike the initial ones."""
    attention = DeformableMeshAttention(dim, heads, len(SHAPES), points=2, sampling=sampling)
    for layer in (attention.offsets, attention.weights):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return attention


def inputs(dim: int = 12, slots: int = 20) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    values = [torch.randn(2, dim, h, w) for h, w in SHAPES]
    return torch.randn(2, slots, dim), torch.rand(2, slots, 2) * 2 - 1, values, torch.randn(2, dim)


def test_module_gradients(seed: int) -> None:
    queries, references, values, pooled = inputs(slots=5)
    attention = make().double()
    arguments = [x.double().requires_grad_() for x in (queries, references, pooled, *values)]
    assert torch.autograd.gradcheck(
        lambda q, r, p, *v: attention(q, r, v, p), arguments, fast_mode=True, atol=1e-4
    )


def test_samplers_are_interchangeable(seed: int) -> None:
    grid, gather = make("grid"), make("gather")
    gather.load_state_dict(grid.state_dict())
    arguments = inputs()
    torch.testing.assert_close(grid(*arguments), gather(*arguments), atol=1e-5, rtol=0)


def test_weights_sum_to_one_over_places_and_global_vector(seed: int) -> None:
    """Over constant maps equal to the global vector, the blend is that vector, wherever it looks inside."""
    attention = make()
    queries, references, values, pooled = inputs()
    values = [pooled[:, :, None, None].expand_as(value) for value in values]
    torch.nn.init.zeros_(attention.offsets.weight)
    torch.nn.init.zeros_(attention.offsets.bias)
    looked = attention(queries, references * 0.3, values, pooled)
    torch.testing.assert_close(
        looked, attention.project_out(pooled)[:, None].expand_as(looked), atol=1e-5, rtol=0
    )


def test_offsets_are_in_pixels_of_each_map(seed: int) -> None:
    """On a map of its own coordinates, an offset of one pixel reads one pixel further."""
    attention = DeformableMeshAttention(2, 1, 1, points=1)
    h, w = 8, 16
    ys, xs = torch.meshgrid(torch.arange(h) + 0.0, torch.arange(w) + 0.0, indexing="ij")
    with torch.no_grad():
        attention.offsets.bias.copy_(torch.tensor([1.0, -2.0]))
        attention.weights.bias.copy_(torch.tensor([100.0, 0.0]))  # all on the map, none on the global vector
        attention.project_out.weight.copy_(torch.eye(2))
        attention.project_out.bias.zero_()
    middle = torch.zeros(1, 1, 2)  # between pixels 7 and 8 across, 3 and 4 down
    read = attention(torch.zeros(1, 1, 2), middle, [torch.stack([xs, ys])[None]], torch.zeros(1, 2))
    torch.testing.assert_close(read[0, 0], torch.tensor([8.5, 1.5]))


def test_finite_far_outside(seed: int) -> None:
    queries, references, values, pooled = inputs()
    queries.requires_grad_()
    looked = make()(queries, references * 1e6, values, pooled)
    (gradient,) = torch.autograd.grad(looked.sum(), queries)
    assert looked.isfinite().all() and gradient.isfinite().all()


def test_unknown_sampling() -> None:
    with pytest.raises(InputError, match="grid, gather, triton"):
        DeformableMeshAttention(8, 2, 1, sampling="texture")
