"""The kernels of sampling against `sample_grid`: compiled where there is a GPU, else interpreted."""

import pytest
import torch
from torch import Tensor

from tests.nn.triton_here import DEVICE  # isort: skip (before the kernels)

from deformer_core.nn import triton_sampling
from deformer_core.nn.deformable_attention import DeformableMeshAttention, sample_grid
from deformer_core.nn.triton_sampling import sample_triton

SHAPES = ((9, 12), (5, 6), (1, 3))


def example(
    batch: int = 2, heads: int = 2, dim: int = 12, points: int = 2, slots: int = 37, reach: float = 1.3
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The weights as of a softmax with one entry more, not side by side in memory."""
    values = [torch.randn(batch, heads * dim, h, w, device=DEVICE) for h, w in SHAPES]
    places = (torch.rand(batch, heads, len(SHAPES), points, 2, slots, device=DEVICE) * 2 - 1) * reach
    weights = torch.rand(batch, heads, len(SHAPES) + 1, points, slots, device=DEVICE)[:, :, :-1]
    return values, places, weights


def gradients(sampled: Tensor, outward: Tensor, values: list[Tensor], *others: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(sampled, (*values, *others), outward)


@pytest.mark.parametrize(
    "sizes",
    [
        {"reach": 0.5},
        {"dim": 24, "points": 1, "slots": 64},
        {"batch": 1, "heads": 1, "dim": 70, "points": 1, "slots": 5},  # longer than a program holds at once
        {"reach": 3.0, "slots": 3},
    ],
)
def test_equal_to_grid_sample_forward_and_backward(sizes: dict, seed: int) -> None:
    values, places, weights = example(**sizes)
    for x in (*values, places, weights):
        x.requires_grad_()
    found, expected = sample_triton(values, places, weights), sample_grid(values, places, weights)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    outward = torch.randn(*expected.shape, device=DEVICE)
    ours, reference = (gradients(out, outward, values, places, weights) for out in (found, expected))
    for a, b in zip(ours, reference):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_edges_and_far_outside(seed: int) -> None:
    values, places, weights = example(batch=1, points=1)
    edges = torch.tensor([-1.0, 1.0, 1 + 1 / 12, 1 + 1 / 9, -1 - 1 / 12, 1e4, -1e4, 1e30, -1e30], device=DEVICE)
    places[..., 0, : len(edges)] = edges
    places[..., 1, 4:13] = edges
    places.requires_grad_()
    found = sample_triton(values, places, weights)
    torch.testing.assert_close(found[..., :13].isfinite(), torch.ones_like(found[..., :13], dtype=torch.bool))
    torch.testing.assert_close(found, sample_grid(values, places.clamp(-1e6, 1e6), weights), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), places)
    far = places.detach().abs().amax(4, keepdim=True) > 3
    assert far.any() and (gradient.masked_select(far) == 0).all()


def test_pixel_centres_give_pixels(seed: int) -> None:
    h, w = 4, 6
    value = torch.randn(1, 5, h, w, device=DEVICE)
    ys, xs = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([(2 * xs.flatten() + 1) / w - 1, (2 * ys.flatten() + 1) / h - 1]).to(DEVICE)
    weights = torch.full((1, 1, 1, 1, h * w), 2.0, device=DEVICE)
    torch.testing.assert_close(sample_triton([value], places[None, None, None, None], weights), 2 * value.flatten(2))


def test_short_numbers(seed: int) -> None:
    """The maps' type is that of the result and of the maps' gradient; coordinates keep theirs. 0.008: two units."""
    values, places, weights = example(batch=1)
    short = [value.to(torch.bfloat16).requires_grad_() for value in values]
    wide = [value.detach().float().requires_grad_() for value in short]
    places.requires_grad_()
    found, expected = sample_triton(short, places, weights), sample_grid(wide, places, weights)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() <= 0.008 * expected.abs().max()
    outward = torch.randn(*expected.shape, device=DEVICE).to(torch.bfloat16)
    ours = gradients(found, outward, short, places)
    for a, b in zip(ours, gradients(expected, outward.float(), wide, places)):
        assert a.dtype == (torch.float32 if a is ours[-1] else torch.bfloat16)
        assert (a - b).abs().max() <= 0.008 * b.abs().max()


def test_in_the_module(seed: int) -> None:
    attention = DeformableMeshAttention(24, 2, len(SHAPES)).to(DEVICE)
    torch.nn.init.normal_(attention.offsets.weight, std=0.5)
    values = [torch.randn(2, 24, h, w, device=DEVICE) for h, w in SHAPES]
    queries, references = torch.randn(2, 7, 24, device=DEVICE), torch.rand(2, 7, 2, device=DEVICE)
    pooled = torch.randn(2, 24, device=DEVICE)
    expected = attention(queries, references, values, pooled)
    attention.sample = sample_triton
    torch.testing.assert_close(attention(queries, references, values, pooled), expected, atol=1e-5, rtol=0)


def test_as_an_operator_of_torch(seed: int) -> None:
    """Its shapes and gradients are known to torch's compiler."""
    values, places, weights = example(batch=1, points=1, slots=5)
    for x in (*values, places):
        x.requires_grad_()
    turned = torch.cat([value.flatten(2).transpose(1, 2) for value in values], 1)
    sizes = [side for shape in SHAPES for side in shape]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(triton_sampling._sample, (turned, places, weights, sizes), test_utils=tests)
    compiled = torch.compile(sample_triton, backend="aot_eager", fullgraph=True)
    outs = (compiled(values, places, weights), sample_triton(values, places, weights))
    for ours, reference in zip(*(torch.autograd.grad(out.square().sum(), (*values, places)) for out in outs)):
        torch.testing.assert_close(ours, reference)
