"""People of any dataset in webdataset tars, each with the part of the image that training may need of it.

A folder holds `shard_000000.tar`, ...: a person is `00000000.jpg` (a square of `room` times the person's, at most
`size` pixels a side) and `00000000.npz` (the fields of `Annotation` that are known, in that image's pixels), one after
the other; beside each tar an index of the same name, `.npy` (N, 4): offset and length of the two in the tar. What the
shards are is in `index.json`. Any person is one read of one piece of a file, local or, by fsspec, in an object store.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation
from deformer_core.errors import InputError
from deformer_core.files import replace_file
from deformer_core.geometry.camera import Intrinsics

FORMAT = 1
SHARD_SIZE = 1000
QUALITY = 93
INDEX = "index.json"
_OPTIONAL = ("joints", "joints_weight", "rotations", "shape", "translation")
_OPEN_INDICES = 64


def pack(
    annotations: Sequence[Annotation],
    folder: Path,
    topology: BodyTopology,
    identity: dict[str, Any],
    shard_size: int = SHARD_SIZE,
    room: float = 2.0,
    size: int = 512,
    threads: int = 2,
) -> Iterator[int]:
    """Write people into a folder; yields the number of people of each shard when it is there.

    Called again on the same folder it goes on after the last whole shard. identity: what must be the same for that
    (the dataset's specification). Errors: `InputError` if the folder holds something else, or of an image.
    """
    recipe = {
        "format": FORMAT,
        "body": {"name": topology.name, "hash": topology.content_hash},
        "joints": list(topology.joint_names),
        "people": len(annotations),
        "identity": {**identity, "shard_size": shard_size, "room": room, "size": size},
    }
    index = _open_index(folder, recipe)
    with ThreadPoolExecutor(threads) as pool:  # OpenCV works outside Python's lock
        for start in range(0, len(annotations), shard_size):
            stop = min(start + shard_size, len(annotations))
            number = start // shard_size
            if number >= len(index["shards"]):
                name = f"shard_{number:06d}.tar"
                people = pool.map(lambda row: _encode(annotations[row], room, size), range(start, stop))
                _write_shard(folder / name, start, people)
                index["shards"].append({"name": name, "people": stop - start})
                _write_index(folder, index)
            yield stop - start


def _open_index(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    if not (folder / INDEX).is_file():
        return recipe | {"shards": []}
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    wrong = [key for key in recipe if index.get(key) != json.loads(json.dumps(recipe[key]))]
    if wrong:
        raise InputError(f"{folder} holds people packed with another {wrong[0]}: give an empty folder.")
    return dict(index)


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    with replace_file(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=1), encoding="utf-8")


def cut_out(annotation: Annotation, room: float, size: int) -> tuple[Annotation, NDArray[np.uint8]]:
    """The square of `room` times the person's, black outside the image, and the person in its pixels.

    Whole pixels are cut, and made smaller all alike, so the camera stays exact.
    """
    import cv2

    width = max(1, round(annotation.side * room))
    x, y = (round(value - width / 2) for value in annotation.center)
    shift = np.array([[1, 0, -x], [0, 1, -y]], np.float64)
    image: Any = cv2.warpAffine(annotation.load_image(), shift, (width, width), flags=cv2.INTER_NEAREST)
    side = min(width, size)
    if side < width:
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    scale, lens = side / width, annotation.intrinsics
    principal = ((lens.cx - x) * scale, (lens.cy - y) * scale)
    moved = replace(
        annotation,
        load_image=lambda: image,
        center=((annotation.center[0] - x) * scale, (annotation.center[1] - y) * scale),
        side=annotation.side * scale,
        intrinsics=Intrinsics(lens.fx * scale, lens.fy * scale, *principal, side, side),
        uv=((annotation.uv - [x, y]) * scale).astype(np.float32),
    )
    return moved, image


def _encode(annotation: Annotation, room: float, size: int) -> tuple[bytes, bytes]:
    """The person's .jpg and .npz."""
    import cv2

    person, image = cut_out(annotation, room, size)
    blue_first = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode(".jpg", blue_first, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    lens = person.intrinsics
    fields: dict[str, Any] = {
        "source": np.array(person.source),
        "window": np.array([*person.center, person.side]),
        "intrinsics": np.array([lens.fx, lens.fy, lens.cx, lens.cy, lens.width, lens.height]),
        "uv": person.uv,
        "uv_weight": person.uv_weight,
        "body": np.array(person.body),
    }
    fields |= {name: value for name in _OPTIONAL if (value := getattr(person, name)) is not None}
    labels = io.BytesIO()
    np.savez(labels, **fields)
    return jpeg, labels.getvalue()


def _write_shard(path: Path, first: int, people: Iterator[tuple[bytes, bytes]]) -> None:
    """The tar and its index."""
    with replace_file(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, files in enumerate(people, first):
                for suffix, content in zip(("jpg", "npz"), files, strict=True):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        with tarfile.open(temporary) as tar:
            places = [(member.offset_data, member.size) for member in tar]
        with replace_file(path.with_suffix(".npy")) as index:
            np.save(index, np.array(places, np.int64).reshape(-1, 4))


class PackedPeople:
    """A folder of `pack`, or its address in an object store (`s3://...`, `https://...`), to read people of.

    Only the number of people of each shard is held in memory. Errors: `InputError` if there is no such folder, if
    packing has not ended, or if it was made for another body.
    """

    def __init__(self, path: str, topology: BodyTopology) -> None:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        self.path = path.rstrip("/")
        try:
            self._files, self._root = url_to_fs(self.path)
            index = json.loads(self._files.cat_file(f"{self._root}/{INDEX}"))
        except (OSError, ImportError, ValueError) as error:
            raise InputError(f"{path} holds no packed people ({error}): make it with training/pack.py.") from error
        if index.get("format") != FORMAT:
            raise InputError(f"{path} is of another format: pack it again with training/pack.py.")
        sizes = [shard["people"] for shard in index["shards"]]
        if sum(sizes) != index["people"] or not sizes:
            raise InputError(f"{path} has {sum(sizes)} of {index['people']} people: run training/pack.py again.")
        body = index["body"]
        same_body = body["name"] != topology.name or body["hash"] == topology.content_hash
        if index["joints"] != list(topology.joint_names) or not same_body:
            raise InputError(f"{path} was packed for another body than this '{topology.name}': pack it again.")
        self.sizes = tuple(sizes)
        self._names = [shard["name"] for shard in index["shards"]]
        self._starts = np.cumsum([0, *sizes])
        self._indices: OrderedDict[int, NDArray[np.int64]] = OrderedDict()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def shard_of(self, row: int) -> str:
        """Path of the tar that holds a person."""
        return f"{self.path}/{self._names[self._place(row)[0]]}"

    def read(self, rows: Sequence[int]) -> list[Annotation]:
        """The people of some rows, their images still encoded. Errors: `InputError` names the shard."""
        spots = [self._spot(row) for row in rows]
        paths = [f"{self._root}/{self._names[self._place(row)[0]]}" for row in rows]
        starts, stops = [spot[0] for spot in spots], [spot[2] + spot[3] for spot in spots]
        pieces = self._files.cat_ranges(paths, starts, stops, on_error="return")
        return [self._decode(*found) for found in zip(rows, pieces, spots, strict=True)]

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def _spot(self, row: int) -> list[int]:
        """Offset and length of image and labels in the tar."""
        shard, place = self._place(row)
        if shard not in self._indices:
            path = f"{self._root}/{Path(self._names[shard]).stem}.npy"
            try:
                places = np.load(io.BytesIO(self._files.cat_file(path)))
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"{path} cannot be read ({error}): copy or pack it again.") from error
            self._indices[shard] = places
            if len(self._indices) > _OPEN_INDICES:
                self._indices.popitem(last=False)
        return [int(value) for value in self._indices[shard][place]]

    def _decode(self, row: int, piece: bytes | Exception, spot: Sequence[int]) -> Annotation:
        image_length, labels_start = spot[1], spot[2] - spot[0]
        try:
            if isinstance(piece, Exception):
                raise piece
            with np.load(io.BytesIO(piece[labels_start:])) as archive:
                fields = {name: archive[name] for name in archive.files}
            x, y, side = fields["window"].tolist()
            fx, fy, cx, cy, width, height = fields["intrinsics"].tolist()
            return Annotation(
                source=str(fields["source"]),
                load_image=lambda: self._image(row, piece[:image_length]),
                center=(x, y),
                side=side,
                intrinsics=Intrinsics(fx, fy, cx, cy, int(width), int(height)),
                uv=fields["uv"],
                uv_weight=fields["uv_weight"],
                body=str(fields["body"]),
                joints=fields.get("joints"),
                joints_weight=fields.get("joints_weight"),
                rotations=fields.get("rotations"),
                shape=fields.get("shape"),
                translation=fields.get("translation"),
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise self._damaged(row, error) from error

    def _image(self, row: int, jpeg: bytes) -> NDArray[np.uint8]:
        import cv2

        image: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
        if image is None:
            raise self._damaged(row, "its image is not a JPEG")
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))

    def _damaged(self, row: int, reason: object) -> InputError:
        where = f"{self.shard_of(row)}, person {self._place(row)[1]}"
        return InputError(f"{where}, cannot be read ({reason}): copy or pack the shard again.")
