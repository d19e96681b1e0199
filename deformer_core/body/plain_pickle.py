"""Pickles and object arrays of numbers, read without running anything else that they may ask for.

Models of the SMPL line are pickles of Python 2 with arrays of numpy, sparse matrices of scipy and expressions of
chumpy, a library that no longer installs. Only these are admitted; chumpy's are evaluated here.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ADMITTED = {
    *((builtins, name) for builtins in ("builtins", "__builtin__") for name in ("object", "set")),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}
_SPARSE = {f"{kind}_{form}" for kind in ("coo", "csc", "csr") for form in ("matrix", "array")}


class _Chumpy:
    """Stands for any class of chumpy: keeps what was stored and does nothing."""

    state: dict[str, Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


class _Ch(_Chumpy):
    """A plain array."""


class _Select(_Chumpy):
    """Some elements of another array."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "chumpy":
            return {"Ch": _Ch, "Select": _Select}.get(name, _Chumpy)
        if module.startswith("scipy.sparse") and name in _SPARSE:
            import scipy.sparse

            return getattr(scipy.sparse, name)  # the modules of old files are gone from newer versions
        if (module, name) in _ADMITTED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not needed to hold numbers")


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled mapping. Raises whatever a damaged file leads to; values are for `as_array`."""
    with path.open("rb") as file:
        return dict(_Unpickler(file, encoding="latin1").load())  # Python 2 knew no other strings


def read_archive(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """Those of the keys that an npz file has, and nothing else of it; otherwise as `read_pickle`."""
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        return {key: _read_member(archive, f"{key}.npy") for key in keys if f"{key}.npy" in members}


def _read_member(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(name) as file:
        newer = np.lib.format.read_magic(file) != (1, 0)
        read_header = np.lib.format.read_array_header_2_0 if newer else np.lib.format.read_array_header_1_0
        if read_header(file)[2].hasobject:
            value = _Unpickler(file, encoding="latin1").load()
            return value.item() if np.shape(value) == () else value
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def as_array(value: Any) -> NDArray[Any]:
    """A dense array of an array, a sparse matrix or an expression of chumpy. Raises ValueError for another one."""
    if isinstance(value, _Ch):
        return np.asarray(value.state["x"])
    if isinstance(value, _Select):
        picked = as_array(value.state["a"]).ravel()[value.state["idxs"]]
        return picked.reshape(value.state.get("preferred_shape", picked.shape))
    if isinstance(value, _Chumpy):
        raise ValueError("an expression of chumpy that is neither an array nor a part of one")
    return value.toarray() if hasattr(value, "toarray") else np.asarray(value)
