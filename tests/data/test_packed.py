"""People go into tars and come out as they were; a tar is one that webdataset reads."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deformer_core.body.topology import BodyTopology
from deformer_core.data.annotation import Annotation, crop
from deformer_core.data.packed import PackedPeople, cut_out, pack
from deformer_core.errors import InputError
from tests.data.drawn_people import draw_people


@pytest.fixture
def people(body: BodyTopology, seed: int) -> Sequence[Annotation]:
    return draw_people(body, 7, seed)


@pytest.fixture
def folder(people: Sequence[Annotation], body: BodyTopology, tmp_path: Path) -> Path:
    assert list(pack(people, tmp_path / "packed", body, {"set": 1}, shard_size=3)) == [3, 3, 1]
    return tmp_path / "packed"


def test_crops_of_packed_people_are_those_of_the_full_image(
    people: Sequence[Annotation], folder: Path, body: BodyTopology
) -> None:
    packed = PackedPeople(str(folder), body)
    assert len(packed) == 7 and packed.sizes == (3, 3, 1)
    for row in (6, 0, 2):
        (found,) = packed.read([row])
        ours, theirs = crop(found, body, 96), crop(people[row], body, 96)
        assert ours.source == theirs.source
        for name in ("box", "uv", "uv_weight", "joints", "rotations", "shape", "camera"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert (a is None) == (b is None), name
            if a is not None:
                np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4, err_msg=name)
        assert ours.image is not None and theirs.image is not None
        assert np.abs(ours.image.astype(float) - theirs.image).mean() < 4  # what JPEG does to dots on noise


def test_a_large_picture_is_made_smaller_with_its_camera(people: Sequence[Annotation], body: BodyTopology) -> None:
    small, image = cut_out(people[0], 2.0, 64)
    assert image.shape == (64, 64, 3)
    ours, theirs = crop(small, body, 32), crop(people[0], body, 32)
    for name in ("box", "uv", "camera"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4, rtol=1e-4)


def test_tars_are_webdataset_tars(folder: Path) -> None:
    with tarfile.open(folder / "shard_000001.tar") as tar:
        names = tar.getnames()
    assert names == [f"{number:08d}.{suffix}" for number in (3, 4, 5) for suffix in ("jpg", "npz")]
    webdataset = pytest.importorskip("webdataset")
    records = list(webdataset.WebDataset(str(folder / "shard_000001.tar"), shardshuffle=False))
    assert [record["__key__"] for record in records] == ["00000003", "00000004", "00000005"]
    labels = np.load(io.BytesIO(records[0]["npz"]))
    assert labels["uv"].shape == (23, 2) and str(labels["source"]) == "drawn:3"


def test_packing_goes_on_where_it_was_killed(
    people: Sequence[Annotation], folder: Path, body: BodyTopology, tmp_path: Path
) -> None:
    class Killed(Sequence):
        """Dies in the second tar."""

        def __len__(self) -> int:
            return len(people)

        def __getitem__(self, row):  # type: ignore[no-untyped-def]
            if row == 4:
                raise SystemError("killed")
            return people[row]

    other = tmp_path / "other"
    with pytest.raises(SystemError):
        list(pack(Killed(), other, body, {"set": 1}, shard_size=3))
    assert sorted(path.name for path in other.iterdir()) == ["index.json", "shard_000000.npy", "shard_000000.tar"]
    with pytest.raises(InputError, match="3 of 7"):
        PackedPeople(str(other), body)
    written = (other / "shard_000000.tar").stat().st_mtime_ns
    assert list(pack(people, other, body, {"set": 1}, shard_size=3)) == [3, 3, 1]
    assert (other / "shard_000000.tar").stat().st_mtime_ns == written
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_another_set_is_not_mixed_in(people: Sequence[Annotation], folder: Path, body: BodyTopology) -> None:
    with pytest.raises(InputError, match="another identity"):
        list(pack(people, folder, body, {"set": 2}, shard_size=3))
    with pytest.raises(InputError, match="another people"):
        list(pack(people[:5], folder, body, {"set": 1}, shard_size=3))


def test_an_address_of_an_object_store(folder: Path, body: BodyTopology) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/bucket/set/", recursive=True)
    near, far = PackedPeople(str(folder), body), PackedPeople("memory://bucket/set", body)
    for a, b in zip(near.read([1, 5]), far.read([1, 5]), strict=True):
        assert a.source == b.source and (a.load_image() == b.load_image()).all()
    assert far.shard_of(5) == "memory://bucket/set/shard_000001.tar"


def test_what_is_wrong_is_named(folder: Path, body: BodyTopology) -> None:
    with pytest.raises(InputError, match="nowhere"):
        PackedPeople("/nowhere", body)
    packed = PackedPeople(str(folder), body)
    tar = folder / "shard_000001.tar"
    content = bytearray(tar.read_bytes())
    content[512:2000] = bytes(1488)
    tar.write_bytes(bytes(content))
    with pytest.raises(InputError, match="shard_000001.tar, person 0"):
        packed.read([3])[0].load_image()
    tar.write_bytes(bytes(content[:600]))
    with pytest.raises(InputError, match="shard_000001.tar, person 2"):
        packed.read([5])
    tar.unlink()
    with pytest.raises(InputError, match="shard_000001.tar, person 1"):
        packed.read([4])
    (folder / "shard_000002.npy").write_bytes(b"")
    with pytest.raises(InputError, match="shard_000002.npy"):
        packed.read([6])
