import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from made_smpl import MadeSmpl, boxed, chumpy_classes, make_smpl, write_meshes
from scipy.sparse import csc_matrix

from deformer_core.body import assets
from deformer_core.body.assets import load_body
from deformer_core.body.plain_pickle import as_array, read_pickle
from deformer_core.body.topology import LEVELS, BodyTopology
from deformer_core.errors import InputError


def load_afresh(name: str = "smpl") -> BodyTopology:
    assets._load_smpl.cache_clear()
    return load_body(name)


def test_either_order_of_the_legs_is_one_body(smpl: BodyTopology, made: MadeSmpl, folder: Path) -> None:
    (folder / "J_regressor_h36m.npy").unlink()
    np.save(folder / "J_regressor_h36m_correct.npy", made.h36m_regressor)
    assert load_afresh().content_hash == smpl.content_hash


def test_pickle_and_archive_are_one_body(smpl: BodyTopology, folder: Path) -> None:
    (folder / "SMPL_NEUTRAL.npz").unlink()
    make_smpl(folder, ".pkl", left_leg_first=False)
    again = load_afresh()
    assert again.content_hash == smpl.content_hash
    for name in LEVELS:
        for part in ("vertices", "faces", "skin_weights", "shape_basis", "pose_basis", "parts"):
            np.testing.assert_array_equal(getattr(again.levels[name], part), getattr(smpl.levels[name], part))
    (folder / "SMPL_NEUTRAL.pkl").rename(folder / "basicModel_neutral_lbs_10_207_0_v1.0.0.pkl")
    assert load_afresh().content_hash == smpl.content_hash


def test_genders_are_other_bodies(smpl: BodyTopology, folder: Path) -> None:
    make_smpl(folder, gender="FEMALE", seed=1)
    female = load_afresh("smpl_female")
    assert female.name == "smpl_female" and female.content_hash != smpl.content_hash
    with pytest.raises(InputError, match=r"SMPL_MALE\.npz or SMPL_MALE\.pkl in .*smpl\.is\.tue\.mpg\.de"):
        load_body("smpl_male")


@pytest.mark.parametrize("name", ["SMPL_NEUTRAL.npz", "J_regressor_h36m.npy", "mesh_downsampling.npz"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for damage in (content[: len(content) // 3], b"\x80\x04" + bytes(100), b""):
        path.write_bytes(damage)
        with pytest.raises(InputError, match=f"{name} cannot be used"):
            load_afresh()
    path.unlink()
    with pytest.raises(InputError, match=rf"SMPL needs {name}.* in {folder} \(\$DEFORMER_SMPL\): get it from https://"):
        load_afresh()


def test_a_missing_folder_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFORMER_SMPL", str(folder / "nowhere"))
    with pytest.raises(InputError, match="no folder .*nowhere"):
        load_body("smpl")
    monkeypatch.delenv("DEFORMER_SMPL")
    with pytest.raises(InputError, match=r"DEFORMER_SMPL .*SMPL_NEUTRAL\.npz .*J_regressor_h36m.*mesh_downsampling"):
        load_body("smpl")


def test_other_contents_are_refused(folder: Path, made: MadeSmpl) -> None:
    path = folder / "SMPL_NEUTRAL.npz"
    with np.load(path) as archive:
        model = dict(archive)
    for change, match in (
        ({"v_template": np.zeros((10475, 3))}, r"v_template has the shape \(10475, 3\)"),
        ({"v_template": model["v_template"] * [-1, 1, 1]}, "shoulder"),
        ({"v_template": model["v_template"][::-1]}, "SMPL's order|shoulder"),
        ({"weights": model["weights"] * np.nan}, "weights is not finite"),
        ({"posedirs": None}, "has no posedirs"),
    ):
        np.savez(path, **{key: value for key, value in (model | change).items() if value is not None})
        with pytest.raises(InputError, match=match):
            load_afresh()
    np.savez(path, **model)
    meshes = folder / "mesh_downsampling.npz"
    for key, value, match in (
        ("D", [csc_matrix(np.full((2, 6890), 0.5)), csc_matrix((1, 2))], "D does not select"),
        ("U", [made.upsample["full"]], r"U has no matrix of shape \(1723, 431\)"),
        ("F", [made.faces["full"]], "F has no mesh of 1723"),
    ):
        write_meshes(meshes, made, **{key: boxed(value)})
        with pytest.raises(InputError, match=match):
            load_afresh()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_pickled_numbers_of_every_age(tmp_path: Path, protocol: int, rng: np.random.Generator) -> None:
    values = rng.normal(size=(4, 3, 2))
    sparse = csc_matrix(values[:, :, 0])
    with chumpy_classes() as (Ch, Select):
        part = Select(a=Ch(x=values), idxs=np.arange(0, 24, 2), preferred_shape=(4, 3))
        stored = {"plain": values, "sparse": sparse, "part": part, "sum": Ch(a=Ch(x=values), b=2.0), "text": "lbs"}
        (tmp_path / "file.pkl").write_bytes(pickle.dumps(stored, protocol))
    found = read_pickle(tmp_path / "file.pkl")
    np.testing.assert_array_equal(as_array(found["plain"]), values)
    for name in ("sparse", "part"):
        np.testing.assert_array_equal(as_array(found[name]), values[:, :, 0])
    with pytest.raises((ValueError, KeyError)):
        as_array(found["sum"])


class Evil:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('run by a pickle')",)


def test_nothing_in_a_pickle_is_run(folder: Path) -> None:
    (folder / "SMPL_NEUTRAL.npz").unlink()
    for protocol in (0, 2, 5):
        (folder / "SMPL_NEUTRAL.pkl").write_bytes(pickle.dumps({"f": Evil()}, protocol))
        with pytest.raises(InputError, match="SMPL_NEUTRAL.pkl .*asks for (__builtin__|builtins).exec"):
            load_afresh()
    np.savez(folder / "SMPL_NEUTRAL.npz", v_template=boxed([Evil()]))
    with pytest.raises(InputError, match="SMPL_NEUTRAL.npz .*asks for (__builtin__|builtins).exec"):
        load_afresh()


def test_cache(smpl: BodyTopology, folder: Path, tmp_path: Path) -> None:
    load_afresh()
    (kept,) = (tmp_path / "cache").iterdir()
    start = time.perf_counter()
    again = load_afresh()
    print(f"{1e3 * (time.perf_counter() - start):.0f} ms")
    assert again.content_hash == smpl.content_hash and load_body("smpl") is again
    for name in LEVELS:
        for part in ("vertices", "skin_weights", "shape_basis", "pose_basis"):
            np.testing.assert_array_equal(getattr(again.levels[name], part), getattr(smpl.levels[name], part))
        np.testing.assert_array_equal(
            again.levels[name].joint_regressor.weights, smpl.levels[name].joint_regressor.weights
        )
    np.testing.assert_array_equal(again.extra_regressors["h36m"].dense(), smpl.extra_regressors["h36m"].dense())

    content = kept.read_bytes()
    for damage in (content[:1000], content[: len(content) // 2], b"PK" + content[:100], b""):
        kept.write_bytes(damage)
        with pytest.warns(UserWarning, match=f"{kept.name}.*made again") as record:
            assert load_afresh().content_hash == smpl.content_hash
        assert len(record) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_afresh()
    make_smpl(folder, seed=5)
    assert load_afresh().content_hash != smpl.content_hash and len(list((tmp_path / "cache").iterdir())) == 2


def test_unwritable_cache_does_no_harm(
    smpl: BodyTopology, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "file" / "below"))
    assert load_afresh().content_hash == smpl.content_hash
