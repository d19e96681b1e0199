"""Pickles and npz files of datasets, read without running what they ask for (see `body.plain_pickle`)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.plain_pickle import as_array, read_archive, read_pickle
from deformer_core.data.readers.common import Fields
from deformer_core.errors import InputError


def read_fields(path: Path) -> Fields:
    """A pickled mapping, its expressions of chumpy as arrays; strings of Python 2 as latin1.

    Errors: `InputError` for a file that is damaged, or that asks for what holds no numbers.
    """
    try:
        content = read_pickle(path)
        return Fields(str(path), {name: _plain(value) for name, value in content.items()})
    except Exception as error:  # what a damaged pickle raises cannot be listed
        raise InputError(f"{path} cannot be unpickled ({error}): is it the dataset's own file?") from error


def _plain(value: Any) -> Any:
    return value if isinstance(value, list | str | bytes | dict) else as_array(value)


class Table:
    """An npz of arrays with one row a record."""

    def __init__(self, path: Path, key: str) -> None:
        """key: the field that says how many records there are.

        Errors: `InputError` for what is not an npz, or lacks the field.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
            self.arrays = {name: np.asarray(value) for name, value in read_archive(path, names).items()}
        except Exception as error:  # as above
            raise InputError(f"{path} is not a readable npz ({error}): check the path") from error
        self._rows = self.header()[key]

    def __len__(self) -> int:
        return len(self._rows)

    def header(self) -> Fields:
        """The arrays themselves."""
        return Fields(str(self.path), self.arrays)

    def row(self, index: int) -> Fields:
        where = f"{self.path}: record {index}"
        return Fields(where, {name: array[index] for name, array in self.arrays.items() if index < _rows(array)})


def _rows(array: NDArray[Any]) -> int:
    return len(array) if array.ndim else 0
