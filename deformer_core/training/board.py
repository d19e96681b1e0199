"""What TensorBoard shows of a run while it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch, pose_labels
from deformer_core.training.pictures import Picture, draw_person

FOLDER = "tensorboard"


class Board:
    """Writes into `out/tensorboard`; look with `tensorboard --logdir out`. Without TensorBoard it does nothing.

    step: of a resumed run; what was written for later steps vanishes.
    """

    def __init__(self, out: Path, step: int = 0) -> None:
        self.missing = ""
        """Why nothing is written, in one line; "" if it is."""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.missing = "no TensorBoard here (pip install tensorboard): curves are in metrics.jsonl alone"
            return
        self._writer = SummaryWriter(str(out / FOLDER), purge_step=step or None)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers by name; those of an inner mapping by outer/inner."""
        if self._writer is not None:
            for name, value in flatten(values):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def pictures(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """(H, W, 3) RGB by name."""
        if self._writer is not None:
            for name, picture in pictures.items():
                self._writer.add_image(name, picture, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def pictures_of(
    outputs: Mapping[str, Any], batch: Batch, topology: BodyTopology, level: str, count: int = 4
) -> dict[str, Picture]:
    """The first `count` people of a batch as `draw_person` shows them, "person_0" and so on.

    outputs: of the model for the batch, as `DeFormerLoss.forward` takes them; the last layer's mesh of `level` is
    drawn. Crops are grey if the batch has no `images`.
    """
    last = outputs["layers"][-1]
    first = {key: value[:count].cpu() for key, value in batch.items()}
    labels = pose_labels(first, ParametricBody(topology, (level,)))
    known = labels["has_mesh"] > 0
    images = first.get("images")
    pictures = {}
    for row in range(len(first["box"])):
        pictures[f"person_{row}"] = draw_person(
            None if images is None else images[row].numpy(),
            _array(first["box"][row]),
            _array(last[f"vertices_{level}"][row]),
            _array(last["camera"][row]),
            topology.levels[level].faces,
            _array(labels[f"vertices_{level}"][row]) if known[row] else None,
        )
    return pictures


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
