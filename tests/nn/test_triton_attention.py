"""The kernels of self-attention against dense attention: compiled where there is a GPU, else interpreted."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.nn.triton_here import DEVICE  # isort: skip (before the kernels)

from deformer_core.body import scap_tables
from deformer_core.body.scap import Scap
from deformer_core.errors import InputError
from deformer_core.nn.sparse_attention import LinkedAttention, dense_masked
from deformer_core.nn.tile_lists import TileList
from deformer_core.nn.triton_attention import _attend, attend_tiles
from tests.nn.strips import strip


@pytest.fixture
def small(rng: np.random.Generator) -> Scap:
    """64 slots, 8 of them padding."""
    return strip(rng, 40)


def tables(scap: Scap) -> tuple[TileList, TileList]:
    return TileList(scap.tables.rows).to(DEVICE), TileList(scap.tables.columns).to(DEVICE)


def bias_of(scap: Scap) -> Tensor:
    mask = torch.from_numpy(scap.dense_mask()).to(DEVICE)
    return torch.zeros(mask.shape, device=DEVICE).masked_fill(~mask, -math.inf)


def random_qkv(scap: Scap, batch: int, heads: int, dim: int) -> list[Tensor]:
    """As of one projection: not side by side in memory."""
    qkv = torch.randn(batch, scap.n_slots, 3, heads, dim, device=DEVICE).permute(2, 0, 3, 1, 4)
    return [x.requires_grad_() for x in qkv.unbind()]


def check(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Differences as parts of the largest number."""
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("batch, heads, dim", [(2, 2, 24), (1, 3, 8), (1, 1, 64)])
def test_equal_to_dense_forward_and_backward(batch: int, heads: int, dim: int, small: Scap) -> None:
    q, k, v = random_qkv(small, batch, heads, dim)
    found, expected = attend_tiles(q, k, v, *tables(small)), dense_masked(q, k, v, bias_of(small))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    outward = torch.randn(*expected.shape, device=DEVICE)
    gradients = (torch.autograd.grad(out, (q, k, v), outward) for out in (found, expected))
    for ours, reference in zip(*gradients):
        check(ours, reference, 1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_short_numbers(dtype: torch.dtype, tolerance: float, small: Scap) -> None:
    """Against the same numbers in float32: what is rounded is the result, and weights before their products."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in random_qkv(small, 1, 2, 16))
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    found, expected = attend_tiles(q, k, v, *tables(small)), dense_masked(*wide, bias_of(small))
    outward = torch.randn(*expected.shape, device=DEVICE).to(dtype)
    check(found, expected, tolerance)
    assert found.dtype == dtype
    reference = torch.autograd.grad(expected, wide, outward.float())
    for ours, gradient in zip(torch.autograd.grad(found, (q, k, v), outward), reference):
        assert ours.dtype == dtype
        check(ours, gradient, tolerance)


def test_cut_rows_are_joined(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scap_tables, "LONG", 1)
    monkeypatch.setattr(scap_tables, "SHORT", 1)
    scap = strip(rng, 150)
    rows, columns = tables(scap)
    assert rows.n_parts and columns.n_parts
    q, k, v = random_qkv(scap, 2, 1, 8)
    with torch.no_grad():
        k *= 20  # parts of one row differ much in their sums
    found, expected = attend_tiles(q, k, v, rows, columns), dense_masked(q, k, v, bias_of(scap))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    outward = torch.randn(*expected.shape, device=DEVICE)
    gradients = (torch.autograd.grad(out, (q, k, v), outward) for out in (found, expected))
    for ours, reference in zip(*gradients):
        check(ours, reference, 1e-4)


def test_every_token_sees_every_other_without_a_pattern(small: Scap) -> None:
    free = small.unrestricted()
    q, k, v = random_qkv(free, 1, 1, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(*(x[:, :, free.slots] for x in (q, k, v)))
    found = attend_tiles(q, k, v, *tables(free))[:, :, free.slots]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_row_hears_of_its_own_links_alone(small: Scap) -> None:
    q, k, v = random_qkv(small, 1, 1, 8)
    mask = torch.from_numpy(small.dense_mask()).to(DEVICE)
    found = attend_tiles(q, k, v, *tables(small))
    for slot in (0, 20, small.n_slots - 1):  # a joint, a vertex, padding
        (gradient,) = torch.autograd.grad(found[0, 0, slot].sum(), v, retain_graph=True)
        torch.testing.assert_close(gradient[0, 0].ne(0).all(-1), mask[slot])


def test_layouts_in_memory_do_not_matter(small: Scap) -> None:
    q, k, v = (x.detach() for x in random_qkv(small, 2, 2, 16))
    expected = attend_tiles(q, k, v, *tables(small))
    torch.testing.assert_close(attend_tiles(q.contiguous(), k, v.contiguous(), *tables(small)), expected)
    turned = k.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(attend_tiles(q, turned, v, *tables(small)), expected)


def test_as_an_operator_of_torch(small: Scap) -> None:
    """Its shapes and gradients are known to torch's compiler."""
    q, k, v = random_qkv(small, 1, 1, 16)
    rows, columns = tables(small)
    arguments = (q, k, v, rows.tables(), rows.n_parts, columns.tables(), columns.n_parts)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(_attend, arguments, test_utils=tests)
    compiled = torch.compile(attend_tiles, backend="aot_eager", fullgraph=True)
    found, expected = compiled(q, k, v, rows, columns), attend_tiles(q, k, v, rows, columns)
    torch.testing.assert_close(found, expected)
    for ours, reference in zip(*(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, expected))):
        torch.testing.assert_close(ours, reference)


def test_without_gradients(small: Scap) -> None:
    q, k, v = (x.detach() for x in random_qkv(small, 1, 1, 16))
    with torch.inference_mode():
        torch.testing.assert_close(attend_tiles(q, k, v, *tables(small)), dense_masked(q, k, v, bias_of(small)))


def test_wide_numbers_are_refused(small: Scap) -> None:
    q, k, v = (x.detach().double() for x in random_qkv(small, 1, 1, 16))
    with pytest.raises(InputError, match="float64"):
        attend_tiles(q, k, v, *tables(small))


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU")
def test_chosen_on_a_gpu(small: Scap) -> None:
    ours, dense = (LinkedAttention(small, name).to(DEVICE) for name in ("triton", "dense"))
    q, k, v = random_qkv(small, 2, 2, 24)
    torch.testing.assert_close(ours(q, k, v), dense(q, k, v), atol=1e-5, rtol=0)
