"""Keys that change how much is computed or learned, and nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deformer_core.body.topology import BodyTopology
from deformer_core.nn.deformer import DeFormer

Build = Callable[..., DeFormer]


def gradients(model: DeFormer, images: Tensor, box: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(images, box)
    (out["vertices_full"].square().sum() + sum(layer["camera"].square().sum() for layer in out["layers"])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("feedback", [True, False])
def test_checkpointing_changes_nothing_but_memory(build: Build, crops: tuple[Tensor, Tensor], feedback: bool) -> None:
    model = build(feedback=feedback, dropout=0.0, layers=3).train()
    plain = gradients(model, *crops)
    model.decoder.checkpointing = True
    again = gradients(model, *crops)
    assert again.keys() == plain.keys() and any("attend_self" in name for name in again)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


def test_checkpointed_layers_keep_fewer_tensors(build: Build, crops: tuple[Tensor, Tensor]) -> None:
    kept: list[int] = []

    def size(checkpointing: bool) -> int:
        model = build(checkpointing=checkpointing, layers=3).train()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            model(*crops)
        return sum(kept)

    assert size(True) < 0.6 * size(False)


def test_without_correction_finer_meshes_are_the_coarse_one_upsampled(
    build: Build, crops: tuple[Tensor, Tensor], body: BodyTopology
) -> None:
    model = build(correction=False)
    assert not any(name.startswith("recovery.c") or "features" in name for name, _ in model.recovery.named_parameters())
    out = model(*crops)
    middle = body.upsample["middle"].apply(out["vertices_coarse"])
    shift = (out["vertices_middle"] - middle).mean(1, keepdim=True)  # all are centred again at the end
    torch.testing.assert_close(out["vertices_middle"], middle + shift, rtol=0, atol=1e-5)
    corrected = build()(*crops)
    difference = corrected["vertices_middle"] - body.upsample["middle"].apply(corrected["vertices_coarse"])
    assert (difference - difference.mean(1, keepdim=True)).abs().max() > 1e-4
