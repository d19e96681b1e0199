"""Garments of the user's: the fit to the template and to posed bodies, what they change in a render, bad files."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from deformer_core.body.topology import PART_NAMES, BodyTopology
from deformer_core.data.synthetic.clothes import JOINED, LOWER, N_BASE, UPPER, Garment, load_base_mesh, load_garments
from deformer_core.data.synthetic.dataset import Record, Studio, SyntheticConfig, SyntheticDataset
from deformer_core.data.synthetic.garments import DressedBody, dress
from deformer_core.data.synthetic.post import PostConfig
from deformer_core.data.synthetic.renderer import NormalField
from deformer_core.data.synthetic.wardrobe import SHARE, Wardrobe
from deformer_core.errors import InputError
from deformer_core.geometry.camera import crop_rotation, project_crop
from tests.conftest import SHARED
from training.render import CONFIG, read_config

SEED = 3
ARCHIVE = SHARED / "data" / "clothes" / "makehuman_clothes_hair_cc0.tar.xz"
SIDES = ("left", "right")
SCALES = {"x": (5399, 11998, 1.4), "y": (791, 881, 2.2), "z": (962, 5320, 1.85)}


@pytest.fixture(scope="module")
def dressed(body: BodyTopology) -> DressedBody:
    return dress(body)


def write_garment(folder: Path, body: BodyTopology, parts: tuple[str, ...], name: str, tag: str = "Casual") -> Path:
    """The skin of some parts as a garment: 2 cm to the front, every third vertex glued on instead."""
    full, base = body.levels["full"], load_base_mesh(body)
    back = np.full(len(full.vertices), -1)
    skin = np.flatnonzero(base.is_skin)
    back[base.vertex[skin]] = skin
    chosen = np.isin(full.parts, [body.part_names.index(part) for part in parts]) & (back >= 0)
    faces = full.faces[chosen[full.faces].all(1)]
    used = np.unique(faces)
    lines = ["# a test", "tag " + tag, f"obj_file {name}.obj"]
    lines += [f"{axis}_scale {a} {b} {d}" for axis, (a, b, d) in SCALES.items()] + ["verts 0", "material none"]
    for row, vertex in enumerate(back[used]):
        other, third = back[used[row - 1]], back[used[row - 2]]
        glued = row % 3 == 0
        lines.append(str(vertex) if glued else f"{vertex} {other} {third} 1.1 0.1 -0.2 0.01 -0.02 0.2")
    named = np.sort(back[used])
    runs = np.split(named, np.flatnonzero(np.diff(named) > 1) + 1)
    lines += ["delete_verts"] + [f"{run[0]} - {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.mhclo").write_text("\n".join(lines))
    corners = np.searchsorted(used, faces) + 1
    (folder / f"{name}.obj").write_text("".join(f"f {a}/1 {b}/2 {c}/3\n" for a, b, c in corners))
    return folder


@pytest.fixture(scope="module")
def folder(body: BodyTopology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clothes")
    legs = ("hips", "left_upper_leg", "right_upper_leg", "left_lower_leg", "right_lower_leg")
    write_garment(folder / "suit", body, ("torso", "left_upper_arm", "right_upper_arm", *legs), "suit")
    write_garment(folder / "trousers", body, legs, "trousers")
    write_garment(folder / "shoes", body, ("left_foot", "right_foot"), "shoes", "Shoes")
    return write_garment(folder / "hat", body, ("head",), "hat", "Hats").parent


def test_garments_lie_where_their_file_says(folder: Path, dressed: DressedBody) -> None:
    garment = next(g for g in load_garments(folder, dressed) if g.name == "suit/suit")
    base = load_base_mesh(dressed.topology).vertices
    rows = (folder / "suit" / "suit.mhclo").read_text().split("verts 0\nmaterial none\n")[1].split("delete_verts")[0]
    # In our axes y and z point the other way.
    unit = [abs(base[a] - base[b])[axis] / d for axis, (a, b, d) in enumerate(SCALES.values())]
    for place, line in zip(garment.level.vertices, rows.splitlines(), strict=True):
        words = line.split()
        expected = base[int(words[0])]
        if len(words) == 9:
            corners = [base[int(word)] for word in words[:3]]
            x, y, z = (float(word) for word in words[6:])
            expected = sum(float(weight) * corner for weight, corner in zip(words[3:6], corners))
            expected = expected + [x * unit[0], -y * unit[1], -z * unit[2]]
        assert np.abs(place - expected).max() < 1e-6


def test_garments_are_told_apart_by_what_they_reach(folder: Path, dressed: DressedBody) -> None:
    found = {garment.name.split("/")[1]: garment for garment in load_garments(folder, dressed)}
    assert {name: garment.kind for name, garment in found.items()} == {
        "hat": "hat", "shoes": "shoes", "suit": "suit", "trousers": "suit"
    }  # fmt: skip
    assert found["suit"].covers_trunk and found["suit"].covers_legs and (found["suit"].side == JOINED).all()
    assert found["trousers"].covers_legs and not found["trousers"].covers_trunk
    assert (found["trousers"].side == LOWER).all() and (found["shoes"].side == UPPER).all()


def test_hidden_skin_is_what_the_file_names(folder: Path, dressed: DressedBody) -> None:
    garment = next(g for g in load_garments(folder, dressed) if g.kind == "shoes")
    base = load_base_mesh(dressed.topology)
    runs = (folder / "shoes" / "shoes.mhclo").read_text().split("delete_verts\n")[1].splitlines()
    ends = [[int(word) for word in run.split(" - ")] for run in runs]
    named = [vertex for end in ends for vertex in range(end[0], end[-1] + 1)]
    feet = np.isin(dressed.topology.levels["full"].parts, [PART_NAMES.index(f"{side}_foot") for side in SIDES])
    assert set(np.flatnonzero(garment.hides)) == set(base.vertex[named])
    assert not garment.hides[~feet].any() and garment.hides[feet].mean() > 0.95


def test_an_archive_gives_what_its_folder_gives(folder: Path, dressed: DressedBody, tmp_path: Path) -> None:
    archive = tmp_path / "clothes.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(folder, ".")
    for ours, theirs in zip(load_garments(folder, dressed), load_garments(archive, dressed), strict=True):
        assert ours.kind == theirs.kind
        assert np.array_equal(ours.level.vertices, theirs.level.vertices)
        assert np.array_equal(ours.level.skin_weights, theirs.level.skin_weights)


def distances(studio: Studio, wardrobe: Wardrobe, count: int) -> dict[str, float]:
    """How much farther from the skin a vertex of each garment ever is than on the template, metres."""
    farther = dict.fromkeys((garment.name for garment in wardrobe.garments), 0.0)
    skin = studio.body.topology.levels["full"].vertices
    for seed in range(count):
        posed = studio.pose(np.random.default_rng(seed))
        tree = cKDTree(posed.dressed[: studio.body.n_body])
        everything = [(index, 0.0) for index in range(len(wardrobe.garments))]
        for worn in wardrobe.pose(everything, posed.rotations, posed.shape):
            level = worn.garment.level
            change = tree.query(worn.vertices)[0] - cKDTree(skin).query(level.vertices)[0]
            farther[worn.garment.name] = max(farther[worn.garment.name], float(change.max()))
    return farther


def test_garments_stay_on_posed_bodies(folder: Path) -> None:
    studio = Studio(SyntheticConfig(background_count=1, clothes=folder))
    assert studio.wardrobe is not None
    assert max(distances(studio, studio.wardrobe, 12).values()) < 0.04
    still = np.tile(np.eye(3, dtype=np.float32), (studio.parametric.n_bones, 1, 1))
    (worn,) = studio.wardrobe.pose([(1, 0.0)], still, np.zeros(studio.parametric.n_shape, np.float32))
    assert np.abs(worn.vertices - worn.garment.level.vertices).max() < 1e-5


def test_a_share_of_people_wears_at_most_one_of_a_kind(folder: Path, dressed: DressedBody) -> None:
    wardrobe = Wardrobe(folder, dressed)
    rng = np.random.default_rng(SEED)
    people = [wardrobe.choose(rng) for _ in range(500)]
    assert SHARE - 0.1 < np.mean([bool(chosen) for chosen in people]) <= SHARE + 0.05
    for chosen in people:
        kinds = [wardrobe.garments[index].kind for index, _ in chosen]
        assert len(kinds) == len(set(kinds))
        assert all(0 < lift < 0.01 for _, lift in chosen)
    assert {index for chosen in people for index, _ in chosen} == set(range(len(wardrobe.garments)))


@pytest.fixture(scope="module")
def datasets(folder: Path) -> tuple[SyntheticDataset, SyntheticDataset]:
    """The same people without garments and with; nothing before them, no compression."""
    torch.set_num_threads(1)
    post = PostConfig(occluded=0.0, blur=0.0, low_resolution=0.0, jpeg=0.0)
    config = SyntheticConfig(background_count=4, companions=0.0, post=post)
    pair = SyntheticDataset(config, SEED), SyntheticDataset(replace(config, clothes=folder), SEED)
    try:
        pair[0].renderer  # noqa: B018 (makes the context)
    except InputError as error:
        pytest.skip(f"no off-screen OpenGL here: {error}")
    return pair


def wears(dataset: SyntheticDataset, monkeypatch: pytest.MonkeyPatch, indices: range) -> list[tuple[Record, bool]]:
    """Samples, and whether their person wears a garment."""
    wardrobe = dataset.studio.wardrobe
    assert wardrobe is not None
    choices: list[bool] = []
    choose = wardrobe.choose

    def noted(rng: np.random.Generator) -> list[tuple[int, float]]:
        choices.append(bool(chosen := choose(rng)))
        return chosen

    monkeypatch.setattr(wardrobe, "choose", noted)
    return [(dataset[index], choices[-1]) for index in indices]


def test_garments_change_pixels_of_their_wearer_alone_and_no_label(
    datasets: tuple[SyntheticDataset, SyntheticDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, clothed = datasets
    dressed_people = 0
    for sample, is_worn in wears(clothed, monkeypatch, range(16)):
        without = plain[int(sample["index"])]
        for name in without.keys() - {"image", "joints_visible"}:
            assert np.array_equal(sample[name], without[name]), name
        changed = (sample["image"] != without["image"]).any(2)
        assert changed.any() == is_worn
        if is_worn:
            assert changed.mean() > 0.002
            assert not (changed & far_from_body(plain, without)).any()
            dressed_people += 1
    assert 5 <= dressed_people <= 14


def far_from_body(dataset: SyntheticDataset, sample: Record) -> np.ndarray:
    """(S, S) bool: pixels of the photo more than 12 cm beside every vertex of body, skirt and long hair."""
    posed = dataset.studio.parametric(
        torch.from_numpy(sample["rotations"])[None], torch.from_numpy(sample["shape"])[None]
    )["dressed"]
    box, camera = torch.from_numpy(sample["box"])[None], torch.from_numpy(sample["camera"])[None]
    model = posed @ crop_rotation(box)
    size = dataset.config.image_size
    uv, beside = ((project_crop(at, camera, box)[0].numpy() + 1) / 2 * size for at in (model, model + 0.12))
    reach = np.linalg.norm(beside - uv, axis=1).max() / np.sqrt(2)
    pixels = np.indices((size, size))[::-1].reshape(2, -1).T + 0.5
    # Outside the photo its edge may be drawn out, the person with it.
    x, y, side = sample["window"]
    in_photo = (pixels / size - 0.5) * side + [x, y]
    inside = ((in_photo > 0) & (in_photo < sample["image_size"])).all(1)
    return (inside & (cKDTree(uv).query(pixels)[0] > reach)).reshape(size, size)


def test_a_sample_with_garments_depends_on_seed_and_index_alone(
    datasets: tuple[SyntheticDataset, SyntheticDataset],
) -> None:
    clothed = datasets[1]
    first = {index: clothed[index]["image"] for index in (0, 1, 2, 3)}
    again = SyntheticDataset(clothed.config, SEED)
    for index in (3, 0, 2, 1):
        assert np.array_equal(again[index]["image"], first[index])


def test_bad_clothes_are_named(folder: Path, dressed: DressedBody, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no .mhclo"):
        load_garments(tmp_path, dressed)
    with pytest.raises(InputError, match="neither a folder nor a readable tar"):
        load_garments(folder / "suit" / "suit.obj", dressed)
    with pytest.raises(InputError, match="neither a folder nor a readable tar"):
        load_garments(tmp_path / "none.tar.xz", dressed)
    other = replace(dressed, topology=replace(dressed.topology, name="smpl"))
    with pytest.raises(InputError, match="'anny' alone"):
        load_garments(folder, other)


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("obj_file hat.obj\n", "", "obj_file"),
        ("obj_file hat.obj", "obj_file no.obj", "no.obj is not beside it"),
        ("1.1 0.1", "1.1", "8 numbers"),
        ("1.1 0.1", "1.1 x", "could not convert"),
        ("1.1 0.1", "1.1 0.9", "do not add up"),
        ("x_scale 5399 11998 1.4", "x_scale 5399 11998 0", "not above 0"),
        ("x_scale 5399", "x_scale 99999", "does not have"),
        ("verts 0\nmaterial none\n", f"verts 0\n{N_BASE}\n", "does not have"),
        ("verts 0\nmaterial none\n", "verts 0\n13400\n", "joints"),
        ("x_scale 5399 11998", "x_scale 5399", "not enough values"),
    ],
)
def test_damaged_garments_are_named(
    folder: Path, dressed: DressedBody, tmp_path: Path, old: str, new: str, what: str
) -> None:
    text = (folder / "hat" / "hat.mhclo").read_text()
    assert old in text
    (tmp_path / "hat.mhclo").write_text(text.replace(old, new, 1))
    (tmp_path / "hat.obj").write_text((folder / "hat" / "hat.obj").read_text())
    with pytest.raises(InputError, match=f"hat.*{what}"):
        load_garments(tmp_path, dressed)


def test_a_mesh_with_more_vertices_is_refused(folder: Path, dressed: DressedBody, tmp_path: Path) -> None:
    (tmp_path / "hat.mhclo").write_text((folder / "hat" / "hat.mhclo").read_text())
    (tmp_path / "hat.obj").write_text("f 1 2 99999\n")
    with pytest.raises(InputError, match="more vertices"):
        load_garments(tmp_path, dressed)
    (tmp_path / "hat.obj").write_text("v 0 0 0\n")
    with pytest.raises(InputError, match="no faces"):
        load_garments(tmp_path, dressed)


def test_the_configuration_keeps_the_clothes() -> None:
    assert read_config(CONFIG, {}).clothes is None
    assert read_config(CONFIG, {"clothes": Path("clothes.tar.xz")}).clothes == Path("clothes.tar.xz")


def test_makehuman_clothes_fit() -> None:
    """Each of the archive lies over the skin it covers, on the template and posed."""
    if not ARCHIVE.is_file():
        pytest.skip(f"no clothes at {ARCHIVE} (set DEFORMER_SHARED)")
    studio = Studio(SyntheticConfig(background_count=1, clothes=ARCHIVE))
    assert studio.wardrobe is not None
    garments = studio.wardrobe.garments
    assert [sum(garment.kind == kind for garment in garments) for kind in ("suit", "shoes", "hair", "hat")] == [
        12, 6, 10, 2
    ]  # fmt: skip
    for garment in garments:
        if garment.kind == "suit":
            assert garment.covers_trunk and garment.covers_legs
        assert share_below(studio.body, garment, 0.003) < 0.06, garment.name
    farther = distances(studio, studio.wardrobe, 4)
    for garment in garments:
        assert farther[garment.name] < (0.04 if garment.kind in ("shoes", "hat") else 0.12), garment.name


def share_below(body: DressedBody, garment: Garment, depth: float) -> float:
    """Share of a garment's vertices that are deeper than that below the skin nearest to them. depth: metres."""
    full = body.topology.levels["full"]
    normals = NormalField(full.faces, len(full.vertices))(full.vertices)
    near = cKDTree(full.vertices).query(garment.level.vertices)[1]
    above = ((garment.level.vertices - full.vertices[near]) * normals[near]).sum(1)
    return float((above < -depth).mean())
