"""The tiles of each row of a mask on the device where kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deformer_core.body.scap_tables import Groups


class TileList(nn.Module):
    """`Groups` as buffers, which are not in the state dict. n_parts: how many pieces are parts of cut rows."""

    pieces: Tensor
    columns: Tensor
    bits: Tensor
    cuts: Tensor

    def __init__(self, groups: Groups) -> None:
        super().__init__()
        self.n_parts = groups.n_parts
        for name, array in vars(groups).items():
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def tables(self) -> list[Tensor]:
        return [self.pieces, self.columns, self.bits, self.cuts]
