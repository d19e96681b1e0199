"""Feature maps of a frozen backbone, computed once and kept on disk beside the labels.

A folder holds one array a file: `map_0.npy` .. `map_3.npy` (N, C, H, W) and `pooled.npy` (N, C) in half
precision, memory-mapped; the float32 labels of `data.sample.label_shapes`; `clean.npy` and `source.npy`;
and `index.json`, which says of what they are and how many rows are done. Rows after `done` are not valid yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch, Sample, label_shapes, stack_labels
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.nn.backbones import BackboneOutput
from deformer_core.nn.deformable_attention import sample_grid
from deformer_core.nn.regressor import sample_evidence

FORMAT = 2
MAPS = ("map_0", "map_1", "map_2", "map_3")
_SOURCE_LENGTH = 64


class FeatureWriter:
    """Fills a folder in order, in chunks; opened again on the same folder it goes on where it stopped.

    identity: what must be the same for that (backbone, weights, body, what the samples are), else `InputError`.
    """

    def __init__(self, folder: Path, count: int, topology: BodyTopology, identity: dict[str, Any]) -> None:
        self.folder, self.count, self.topology = folder, count, topology
        self.index: dict[str, Any] = {"format": FORMAT, "count": count, "done": 0, **identity}
        self._arrays: dict[str, NDArray[Any]] = {}
        if (folder / "index.json").is_file():
            found = read_index(folder)
            wrong = [key for key in self.index if key != "done" and found.get(key) != self.index[key]]
            if wrong:
                raise InputError(
                    f"{folder} holds features with another {wrong[0]} ({found.get(wrong[0])}): give another folder."
                )
            self.index = found
            self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in found["arrays"]}

    @property
    def done(self) -> int:
        return int(self.index["done"])

    def append(self, features: BackboneOutput, samples: Sequence[Sample]) -> None:
        """Rows `done` to `done + len(samples)`; the samples' own keypoints are replaced by the backbone's."""
        start, stop = self.done, self.done + len(samples)
        values: dict[str, NDArray[Any]] = dict(stack_labels(samples, self.topology))
        values["keypoints"] = features.keypoints.numpy()
        for name, tensor in zip((*MAPS, "pooled"), (*features.maps, features.pooled), strict=True):
            values[name] = tensor.half().numpy()
        values["clean"] = np.array([sample.clean for sample in samples])
        values["source"] = np.array([sample.source[-_SOURCE_LENGTH:] for sample in samples], f"U{_SOURCE_LENGTH}")
        if not self._arrays:
            self._create(values)
        for name, value in values.items():
            self._arrays[name][start:stop] = value
        for array in self._arrays.values():
            array.flush()  # type: ignore[attr-defined]
        self.index["done"] = stop
        self._write_index()

    def _create(self, values: dict[str, NDArray[Any]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            shape = (self.count, *value.shape[1:])
            self._arrays[name] = np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", value.dtype, shape)
        self.index["arrays"] = sorted(values)

    def _write_index(self) -> None:
        with replace_file(self.folder / "index.json") as temporary:
            temporary.write_text(json.dumps(self.index, indent=1), encoding="utf-8")


class FeatureCache:
    """A folder of features, to read rows from. Labels are held in memory, maps stay on disk."""

    def __init__(self, folder: Path, topology: BodyTopology) -> None:
        self.folder = folder
        self.index = read_index(folder)
        if self.index["body"] != topology.content_hash:
            raise InputError(f"{folder} was made for another body than '{topology.name}': make the features again.")
        self._maps = [self._open(name) for name in (*MAPS, "pooled")]
        self._labels = {key: np.array(self._open(key)[: len(self)]) for key in label_shapes(topology)}
        self.clean = np.array(self._open("clean")[: len(self)])
        self.source = self._open("source")

    def _open(self, name: str) -> NDArray[Any]:
        try:
            return np.load(self.folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}/{name}.npy cannot be read ({error}): make the features again.") from error

    def __len__(self) -> int:
        return int(self.index["done"])

    def labels(self, rows: NDArray[np.integer]) -> Batch:
        return {key: torch.from_numpy(value[rows]) for key, value in self._labels.items()}

    def pooled(self, rows: NDArray[np.integer]) -> torch.Tensor:
        """(N, C) float32."""
        return torch.from_numpy(self._maps[-1][rows]).float()

    def evidence(self, rows: NDArray[np.integer]) -> torch.Tensor:
        """(N, 17, C) float32: `nn.regressor.sample_evidence` at the keypoints as they were found."""
        maps = [torch.empty(0), torch.empty(0), *(torch.from_numpy(array[rows]).float() for array in self._maps[2:4])]
        return sample_evidence(maps, torch.from_numpy(self._labels["keypoints"][rows]), sample_grid)

    def features(self, rows: NDArray[np.integer]) -> BackboneOutput:
        """float32; read in the order of the file whatever the order of `rows`."""
        order = np.argsort(rows, kind="stable")
        back = np.argsort(order, kind="stable")
        *maps, pooled = (torch.from_numpy(array[rows[order]][back]).float() for array in self._maps)
        keypoints = torch.from_numpy(self._labels["keypoints"][rows])
        return BackboneOutput((maps[0], maps[1], maps[2], maps[3]), pooled, keypoints)


def weights_digest(backbone: nn.Module) -> str:
    """Of all weights of a backbone: features are of use only with the backbone that made them."""
    values = [tensor.float().cpu().numpy().tobytes() for tensor in backbone.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()[:16]


def read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): make the features with cache_features.py.") from error
    if index.get("format") != FORMAT:
        raise InputError(f"{folder} has features of another format: make them again with cache_features.py.")
    return dict(index)
