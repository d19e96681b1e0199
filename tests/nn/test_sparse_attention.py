import io
import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from deformer_core.body.scap import Scap, build_scap
from deformer_core.body.scap_cache import cached_scap
from deformer_core.body.scap_tables import TILE
from deformer_core.body.topology import BodyTopology
from deformer_core.errors import InputError
from deformer_core.nn import sparse_attention
from deformer_core.nn.sparse_attention import (
    EXECUTIONS,
    BodySparseAttention,
    LinkedAttention,
    TileBucket,
    choose_executions,
    dense_masked,
    tile_gather,
)


@pytest.fixture
def ribbon(rng: np.random.Generator) -> Scap:
    """A strip of 40 triangles' vertices and three joints: 64 slots, 8 of them padding."""
    faces = np.arange(38)[:, None] + np.arange(3)
    return build_scap(faces, 40, csr_matrix(rng.random((3, 40)) < 0.2), rings=1)


def bias_of(mask: np.ndarray) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~torch.from_numpy(mask), -math.inf)


def buckets_of(scap: Scap) -> list[TileBucket]:
    return [
        TileBucket(torch.from_numpy(b.rows), torch.from_numpy(b.columns), bias_of(b.masks))
        for b in scap.tables.buckets
    ]


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scap: Scap) -> torch.Tensor:
    """Row by row over the mask's own lists."""
    rows = []
    for slot in range(scap.n_slots):
        seen = torch.from_numpy(scap.indices[scap.indptr[slot] : scap.indptr[slot + 1]])
        scores = (q[:, :, slot, None] * k[:, :, seen]).sum(-1) / math.sqrt(q.shape[-1])
        rows.append((scores.softmax(-1)[..., None] * v[:, :, seen]).sum(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("level", ["ribbon", "coarse", "middle"])
def test_executions_agree(level: str, ribbon: Scap, body: BodyTopology, seed: int) -> None:
    scap = ribbon if level == "ribbon" else cached_scap(body, level)
    q, k, v = torch.randn(3, 2, 3, scap.n_slots, 8)
    dense = dense_masked(q, k, v, bias_of(scap.dense_mask()))
    tiles = tile_gather(q, k, v, buckets_of(scap))
    torch.testing.assert_close(dense, tiles, atol=1e-5, rtol=0)
    if level == "ribbon":
        torch.testing.assert_close(by_hand(q, k, v, scap), tiles, atol=1e-5, rtol=0)


@pytest.mark.parametrize("execution", ["dense", "tiles"])
def test_gradients(execution: str, ribbon: Scap, seed: int) -> None:
    q, k, v = torch.randn(3, 1, 2, ribbon.n_slots, 2, dtype=torch.float64, requires_grad=True)
    bias, buckets = bias_of(ribbon.dense_mask()).double(), buckets_of(ribbon)

    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        return dense_masked(*qkv, bias) if execution == "dense" else tile_gather(*qkv, buckets)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("backend", ["dense", "tiles"])
def test_unrestricted_is_plain_multi_head_attention(backend: str, ribbon: Scap, seed: int) -> None:
    ours = BodySparseAttention(12, 3, LinkedAttention(ribbon.unrestricted(), backend))
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.project_in.weight)
        theirs.in_proj_bias.copy_(ours.project_in.bias)
        theirs.out_proj.load_state_dict(ours.project_out.state_dict())
    tokens = torch.randn(2, ribbon.n_tokens, 12)
    expected = theirs(tokens, tokens, tokens, need_weights=False)[0]
    torch.testing.assert_close(ours(tokens[:, ribbon.order])[:, ribbon.slots], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["dense", "tiles"])
def test_only_linked_tokens_hear_of_a_change(backend: str, ribbon: Scap, seed: int) -> None:
    attention = BodySparseAttention(8, 2, LinkedAttention(ribbon, backend))
    mask = ribbon.dense_mask()
    tokens = torch.randn(1, ribbon.n_slots, 8)
    before = attention(tokens)
    for slot in (0, 5, 20, ribbon.n_slots - 1):  # a joint, a register, a vertex, padding
        changed = tokens.clone()
        changed[0, slot] += 1
        heard = (attention(changed) != before).any(-1)[0].numpy()
        np.testing.assert_array_equal(heard, mask[:, slot])


@pytest.mark.parametrize("installed", [True, False])
def test_auto_goes_by_size_and_device(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_attention, "find_spec", lambda name: object() if installed else None)
    kernels = "triton" if installed else "tiles"
    assert choose_executions("auto", 496) == ("dense", "dense")
    assert choose_executions("auto", 656) == ("tiles", "dense")
    assert choose_executions("auto", 12304) == ("tiles", kernels)
    assert choose_executions("triton", 496) == ("tiles", "triton")
    assert choose_executions("dense", 12304) == ("dense", "dense")


def test_only_what_may_run_is_kept(body: BodyTopology, ribbon: Scap) -> None:
    assert set(LinkedAttention(ribbon).executions) == {"dense"}
    scap = cached_scap(body, "middle")
    middle = LinkedAttention(scap)
    assert set(middle.executions) == set(choose_executions("auto", scap.n_slots))
    assert sum(len(bucket.rows) for bucket in middle.executions["tiles"].buckets) * TILE == scap.n_slots


@pytest.mark.parametrize("backend", sorted(EXECUTIONS))
def test_weights_fit_any_execution(backend: str, ribbon: Scap) -> None:
    names = {"project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias"}
    assert set(BodySparseAttention(8, 2, LinkedAttention(ribbon, backend)).state_dict()) == names


def storage(module: nn.Module) -> list[int]:
    """Where all its tables lie, as often as it has them."""
    return [table.data_ptr() for _, table in module.named_buffers(remove_duplicate=False) if table.numel()]


@pytest.mark.parametrize("backend", sorted(EXECUTIONS))
def test_layers_share_their_tables(backend: str, ribbon: Scap) -> None:
    """Before and after they are copied, moved and saved."""
    attend = LinkedAttention(ribbon, backend)
    layers = nn.ModuleList(BodySparseAttention(8, 2, attend) for _ in range(3))
    saved = io.BytesIO()
    torch.save(layers, saved)
    again = torch.load(io.BytesIO(saved.getvalue()), weights_only=False)
    for module in (layers, deepcopy(layers), again, deepcopy(layers).to("meta").to_empty(device="cpu")):
        first, *others = (storage(layer) for layer in module)
        assert first and all(other == first for other in others)
    assert not set(storage(deepcopy(layers))) & set(storage(layers))


@pytest.mark.parametrize("backend", ["dense", "tiles"])
def test_shared_tables_are_exported_once(backend: str, ribbon: Scap, seed: int) -> None:
    attend = LinkedAttention(ribbon, backend)
    layers = nn.Sequential(*(BodySparseAttention(8, 2, attend) for _ in range(3))).eval()
    tokens = torch.randn(2, ribbon.n_slots, 8)
    batch = torch.export.Dim("batch", max=8)
    program = torch.export.export(layers, (tokens,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, ribbon.n_slots, 8)
    torch.testing.assert_close(program.module()(more), layers(more))
    assert {table.data_ptr() for table in program.constants.values()} == set(storage(layers))


def test_bad_settings(ribbon: Scap) -> None:
    with pytest.raises(InputError, match="divisor of 10"):
        BodySparseAttention(10, 4, LinkedAttention(ribbon))
    with pytest.raises(InputError, match="auto, dense, tiles, triton"):
        LinkedAttention(ribbon, "flash")
