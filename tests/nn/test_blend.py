import numpy as np
import torch

from deformer_core.body.topology import BodyTopology, RowBlend
from deformer_core.nn.blend import Blend


def test_equals_the_dense_matrix(body: BodyTopology, seed: int) -> None:
    for blend in (*body.upsample.values(), body.levels["full"].joint_regressor):
        values = torch.randn(2, blend.n_input, 3, requires_grad=True)
        fused = Blend(blend)(values)
        rows = np.linspace(0, len(blend.indices) - 1, 20).astype(int)
        few = RowBlend(blend.indices[rows], blend.weights[rows], blend.n_input)
        torch.testing.assert_close(fused[:, rows], torch.from_numpy(few.dense()) @ values, atol=1e-5, rtol=0)
        outward = torch.randn_like(fused)
        ours = torch.autograd.grad(fused, values, outward)[0]
        theirs = torch.autograd.grad(blend.apply(values), values, outward)[0]
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_with_empty_rows_and_unused_inputs(rng: np.random.Generator) -> None:
    weights = rng.normal(size=(6, 3)).astype(np.float32) * (rng.random((6, 3)) < 0.6)
    weights[2] = 0
    blend = RowBlend(rng.integers(0, 5, (6, 3)).astype(np.int32), weights, 7)
    values = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(Blend(blend)(values), torch.from_numpy(blend.dense()).double() @ values)
    assert torch.autograd.gradcheck(Blend(blend), values)
