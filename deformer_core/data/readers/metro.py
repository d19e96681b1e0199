"""The tsv files of METRO, Graphormer and FastMETRO, described by a yaml.

`img`: key and base64 of a jpg; `label`: key and json, a list of one dict with center, scale of 200 pixels, 2d_joints
(24, 3) and 3d_joints (24, 4, metres) in J24, pose (72), betas (10), has_2d_joints, has_3d_joints, has_smpl; `hw`: key
and the size; `linelist`: the rows that count, or with `composite: true`, where img, label and hw are lists of files,
two columns of file and row. Rows are found through the `.lineidx` of byte offsets beside each tsv, or by one pass over
it where there is none; nothing is read before it is asked for.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import J24
from deformer_core.data.photos import decode_photo, encoded_size
from deformer_core.data.readers.common import Fields, Records, add_joints, add_smpl, label
from deformer_core.errors import InputError


class Tsv:
    """Rows of a tsv by number."""

    def __init__(self, path: Path) -> None:
        self.path = path
        index = path.with_suffix(".lineidx")
        try:
            if index.is_file():
                self.offsets = np.array(index.read_bytes().split(), np.int64)
            else:
                with path.open("rb") as file:
                    self.offsets = np.cumsum([0, *(len(line) for line in file)], dtype=np.int64)[:-1]
        except (OSError, ValueError) as error:
            raise InputError(f"{path} or its .lineidx cannot be read ({error}): check the folder") from error

    def __len__(self) -> int:
        return len(self.offsets)

    def columns(self, row: int) -> list[str]:
        """Errors: `InputError` if there is no such row."""
        if not 0 <= row < len(self.offsets):
            raise InputError(f"{self.path} has {len(self.offsets)} rows, but row {row} is asked for")
        try:
            with self.path.open("rb") as file:
                file.seek(self.offsets[row])
                return file.readline().decode("utf-8").rstrip("\n").split("\t")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: row {row} cannot be read ({error})") from error


@dataclass(frozen=True)
class TsvPhoto:
    """An image in the last column of a row."""

    tsv: Tsv
    row: int

    def load(self) -> NDArray[np.uint8]:
        return decode_photo(self._bytes(), f"{self.tsv.path}: the image of row {self.row}")

    def size(self) -> tuple[int, int]:
        return encoded_size(self._bytes(), f"{self.tsv.path}: the image of row {self.row}")

    def _bytes(self) -> bytes:
        try:
            return base64.b64decode(self.tsv.columns(self.row)[-1], validate=True)
        except binascii.Error:
            raise InputError(f"{self.tsv.path}: row {self.row} has no image in base64 in its last column") from None


def read(path: Path, topology: BodyTopology) -> Sequence[Annotation]:
    """path: the yaml; the files it names lie beside it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as yaml ({error}): check the path") from error
    config = Fields(str(path), content)
    files = {name: [Tsv(path.parent / file) for file in _list(config, name)] for name in ("img", "label")}
    if len(files["img"]) != len(files["label"]):
        raise InputError(f"{path}, field 'label' lists {len(files['label'])} files, but 'img' {len(files['img'])}")
    if "linelist" in config:
        places = _linelist(path.parent / config.text("linelist"), len(files["img"]))
    else:
        places = [(number, row) for number, tsv in enumerate(files["label"]) for row in range(len(tsv))]
    return Records(len(places), partial(_person, files["img"], files["label"], places, topology))


def _list(config: Fields, name: str) -> list[str]:
    """File names of a field: one, several, or in a composite the name of a file that lists them."""
    if isinstance(config[name], list):
        return [str(file) for file in config[name]]
    file = config.text(name)
    if "composite" not in config or not config["composite"] or file.endswith(".tsv"):
        return [file]
    listing = Path(config.where).parent / file
    if not listing.is_file():
        raise InputError(f"{config.where}, field '{name}' names {listing}, which does not exist")
    return listing.read_text(encoding="utf-8").split()


def _linelist(path: Path, files: int) -> list[tuple[int, int]]:
    """File and row of each record."""
    places: list[tuple[int, int]] = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            columns = [int(value) for value in line.split()]
            file, row = (0, *columns) if len(columns) == 1 else columns
            if not 0 <= file < files:
                raise ValueError(f"line {number} names file {file} of {files}")
            places.append((file, row))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a list of rows, or of files and rows ({error})") from error
    return places


def _person(
    images: Sequence[Tsv], labels: Sequence[Tsv], places: Sequence[tuple[int, int]], topology: BodyTopology, index: int
) -> Annotation:
    file, number = places[index]
    where = f"{labels[file].path}: record {number}"
    columns = labels[file].columns(number)
    try:
        row = Fields(where, json.loads(columns[1])[0])
    except (ValueError, IndexError, KeyError):
        raise InputError(f"{where} has no json list of one person in its second column") from None
    window = (*row.array("center", 2), 200 * row.number("scale"))
    keypoints = row.array("2d_joints", 24, 3) * bool(row.number("has_2d_joints"))
    gender = row.text("gender") if "gender" in row else ""
    photo = TsvPhoto(images[file], number)
    person = label(topology, where, photo, window, (J24, keypoints), tags={"gender": gender})
    if row.number("has_3d_joints"):
        person = add_joints(person, topology, (J24, row.array("3d_joints", 24, 4)))
    if row.number("has_smpl"):
        person = add_smpl(person, row.array("pose", 72), row.array("betas", 10), gender)
    return person
