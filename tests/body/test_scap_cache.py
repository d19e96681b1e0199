"""The file of a SCAP: what comes out is what was put in, and what cannot be used is built again."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from deformer_core.body import scap, scap_cache, scap_tables
from deformer_core.body.scap_cache import ARRAYS, COUNTS, TABLES, cached_scap
from deformer_core.body.scap_tables import make_tables
from deformer_core.body.topology import LEVELS, BodyTopology


def test_cache_round_trip(body: BodyTopology, tmp_path: Path) -> None:
    built = cached_scap(body, "coarse", cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    loaded = cached_scap(body, "coarse", cache_dir=tmp_path)
    for name in (*COUNTS, *ARRAYS):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(built, name))
    cached_scap(body, "coarse", rings=1, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("level", LEVELS)
def test_tables_from_the_file_are_those_of_the_mask(
    body: BodyTopology, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_scap(body, level, cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(scap, "make_tables", None)  # nothing is made at a start
        tables = cached_scap(body, level, cache_dir=tmp_path).tables
    loaded = cached_scap(body, level, cache_dir=tmp_path)
    expected = make_tables(loaded.row_indices, loaded.indices, loaded.n_slots)
    for name in TABLES:
        ours, theirs = vars(getattr(tables, name)), vars(getattr(expected, name))
        assert ours.keys() == theirs.keys()
        for key, array in theirs.items():
            assert ours[key].dtype == array.dtype
            np.testing.assert_array_equal(ours[key], array)


def test_an_older_format_is_built_anew(body: BodyTopology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its file, which has another name; and even under the new one."""
    with monkeypatch.context() as patch:
        patch.setattr(scap_cache, "FORMAT", 1)
        cached_scap(body, "coarse", cache_dir=tmp_path)
    (old,) = tmp_path.iterdir()
    cached_scap(body, "coarse", cache_dir=tmp_path)
    (new,) = set(tmp_path.iterdir()) - {old}
    old.replace(new)
    with pytest.warns(UserWarning, match="another format"):
        cached_scap(body, "coarse", cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["rows.bits", "columns.columns", "buckets.bits", "order"])
def test_a_file_with_an_array_missing_or_short_is_built_again(
    body: BodyTopology, tmp_path: Path, name: str
) -> None:
    cached_scap(body, "coarse", cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path) as file:
        arrays = dict(file)
    removed = arrays.pop(name)
    for changed in (arrays, {**arrays, name: removed[:-1]}):
        np.savez(path, **changed)
        with pytest.warns(UserWarning, match="built again"):
            cached_scap(body, "coarse", cache_dir=tmp_path)


def test_another_layout_has_another_file(body: BodyTopology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_scap(body, "coarse", cache_dir=tmp_path)
    monkeypatch.setattr(scap_tables, "LONG", 1)
    monkeypatch.setattr(scap_tables, "SHORT", 1)
    loaded = [cached_scap(body, "coarse", cache_dir=tmp_path) for _ in range(2)]
    assert len(list(tmp_path.iterdir())) == 2 and all(scap.tables.rows.n_parts for scap in loaded)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "foreign"])
def test_damaged_cache_is_rebuilt_and_said_once(body: BodyTopology, tmp_path: Path, damage: str) -> None:
    built = cached_scap(body, "coarse", cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "foreign":
        cached_scap(body, "coarse", rings=1, cache_dir=tmp_path / "other")
        content = next((tmp_path / "other").iterdir()).read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "garbage": b"PK" + content[::-1], "empty": b""}
    path.write_bytes(damaged.get(damage, content))
    with pytest.warns(UserWarning, match=f"{path.name}.*built again") as record:
        rebuilt = cached_scap(body, "coarse", cache_dir=tmp_path)
    assert len(record) == 1
    np.testing.assert_array_equal(rebuilt.token_pairs(), built.token_pairs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached_scap(body, "coarse", cache_dir=tmp_path)


def test_cache_folder_from_the_environment(
    body: BodyTopology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "deep" / "er"))
    cached_scap(body, "coarse")
    assert len(list((tmp_path / "deep" / "er").iterdir())) == 1


def test_unwritable_cache_does_no_harm(body: BodyTopology, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    assert cached_scap(body, "coarse", cache_dir=tmp_path / "file" / "below").n_vertices == 615
    (tmp_path / "full").mkdir(mode=0o500)
    assert cached_scap(body, "coarse", cache_dir=tmp_path / "full").n_vertices == 615
