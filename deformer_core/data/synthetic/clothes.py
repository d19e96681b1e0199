"""Garments of MakeHuman on our body: read from the user's files, fitted to the template, bound to the rig.

A garment is a mesh (.obj) and a file (.mhclo) that hangs each of its vertices on three vertices of MakeHuman's base
mesh "hm08": on the skin, or on helpers, a loose second skin that the base mesh brings. Where that base mesh lies on our
template is a small table beside the body (see `training/bake_body.py`), so the fit is MakeHuman's own. Skinning and
shape are borrowed from the body's vertices under it.
"""

from __future__ import annotations

import lzma
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from deformer_core.body.topology import BodyTopology, Level
from deformer_core.data.synthetic.garments import DressedBody, Landmarks, dense_skin, in_parts, strongest_bones
from deformer_core.errors import InputError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]

BASE_MESH = Path(__file__).parents[2] / "body" / "data" / "makehuman_base_mesh.safetensors"
N_BASE = 19158
"""Vertices of "hm08"."""
KINDS = ("suit", "shoes", "hair", "hat")
AROUND = 60
"""Vertices of the body that cloth hanging free follows."""
UPPER, JOINED, LOWER = 0.0, 0.5, 1.0
"""Sides of a garment: what is worn above (shirts, shoes), one mesh for trunk and legs, and what is worn with it
(trousers, skirts, socks)."""


@dataclass(frozen=True)
class BaseMesh:
    """MakeHuman's base mesh on our template."""

    vertices: NDArray[np.float64]
    """(19158, 3) metres, template coordinates; NaN for the few that nothing hangs on (eyes, teeth, joints)."""
    vertex: NDArray[np.int64]
    """(19158,) the full level's vertex that each is; for helpers and the few not kept in our body the nearest one."""
    is_skin: NDArray[np.bool_]
    """(19158,) whether `vertex` is that very vertex."""


@dataclass(frozen=True)
class Garment:
    """One piece to wear."""

    name: str
    kind: str
    """Of KINDS."""
    level: Level
    """Posed as the body's levels are. Its vertices are template coordinates; it has no joints of its own."""
    side: FloatArray
    """(G,) UPPER, JOINED or LOWER."""
    covers_trunk: bool
    covers_legs: bool
    hides: NDArray[np.bool_]
    """(V,) vertices of the full level that lie hidden under it."""


@dataclass(frozen=True)
class Cut:
    """A .mhclo and its .obj as read: G vertices, F triangles. Lengths in the files' unit, y up."""

    name: str
    tags: frozenset[str]
    references: IntArray
    """(G, 3) vertices of the base mesh."""
    weights: NDArray[np.float64]
    """(G, 3)"""
    offsets: NDArray[np.float64]
    """(G, 3)"""
    scales: tuple[tuple[int, int, float], ...]
    """For x, y and z: two base vertices, and how far apart along that axis they are where an offset is taken as is."""
    faces: IntArray
    """(F, 3), counter-clockwise seen from outside."""
    deleted: NDArray[np.int64]
    """Vertices of the base mesh not to be drawn under it."""


def load_garments(path: Path, body: DressedBody) -> list[Garment]:
    """Every garment of a folder or of a tar archive, fitted to a body, in order of their names.

    Errors: `InputError` for a path without garments, a damaged file, and a body other than Anny's.
    """
    base = load_base_mesh(body.topology)
    texts = _read_texts(path)
    cuts = [read_cut(name, texts) for name in sorted(texts) if name.endswith(".mhclo")]
    if not cuts:
        raise InputError(f"{path} holds no .mhclo files: give the folder or the tar archive of MakeHuman's clothes")
    return [fit(cut, base, body) for cut in cuts]


def load_base_mesh(topology: BodyTopology) -> BaseMesh:
    """The base mesh on the template. Errors: `InputError` for a body other than Anny's, and a damaged table."""
    from scipy.spatial import cKDTree

    if topology.name != "anny":
        raise InputError(f"clothes fit the body 'anny' alone, not '{topology.name}': leave out --clothes")
    try:
        table = load_file(BASE_MESH)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{BASE_MESH} is not readable ({error}): make it with training/bake_body.py") from error
    full = topology.levels["full"].vertices
    vertices = np.full((N_BASE, 3), np.nan)
    vertex, is_skin = np.zeros(N_BASE, np.int64), np.zeros(N_BASE, bool)
    skin = np.flatnonzero(table["vertex"] >= 0)
    vertex[skin], is_skin[skin] = table["vertex"][skin], True
    vertices[skin] = full[vertex[skin]]
    other = np.concatenate([np.flatnonzero(table["vertex"] < 0), np.arange(int(table["first_helper"][0]), N_BASE)])
    vertices[other] = table["places"] * 1e-4
    vertex[other] = cKDTree(full).query(vertices[other])[1]
    return BaseMesh(vertices, vertex, is_skin)


def _read_texts(path: Path) -> dict[str, str]:
    """Every .mhclo and .obj below a folder or in a tar archive, by its place there."""
    wanted = (".mhclo", ".obj")
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.suffix in wanted and file.is_file())
        return {file.relative_to(path).as_posix(): file.read_text("utf8", "replace") for file in files}
    texts = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name.endswith(wanted) else None
                if file is not None:
                    texts[PurePosixPath(member.name).as_posix()] = file.read().decode("utf8", "replace")
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
        raise InputError(f"{path} is neither a folder nor a readable tar archive: {error}") from error
    return texts


def read_cut(name: str, texts: dict[str, str]) -> Cut:
    """One garment out of the files' texts. Errors: `InputError` names the file and what is wrong with it."""
    try:
        return _parse(name, texts)
    except (ValueError, IndexError) as error:
        raise InputError(f"{name} is not a whole garment ({error}): unpack the clothes again") from error


def _parse(name: str, texts: dict[str, str]) -> Cut:
    place = PurePosixPath(name)
    head: dict[str, list[str]] = {}
    tags: set[str] = set()
    rows: list[list[float]] = []
    deleted: list[str] = []
    for line in texts[name].splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0][0].isalpha():
            head[words[0]] = words[1:]
            if words[0] == "tag":
                tags |= {word.lower() for word in words[1:]}
        elif "delete_verts" in head:
            deleted += words
        elif "verts" in head:  # some files have further settings between this word and the vertices
            rows.append(_vertex(words))
    if missing := {"obj_file", "x_scale", "y_scale", "z_scale"} - head.keys():
        raise ValueError(f"it has no line '{min(missing)}'")
    if not rows:
        raise ValueError("it has no vertices")
    table = np.array(rows)
    references = table[:, :3].astype(np.int32)
    scales = [(int(a), int(b), float(d)) for a, b, d in (head[f"{axis}_scale"] for axis in "xyz")]
    named = np.concatenate([references.ravel(), *([a, b] for a, b, _ in scales)])
    if named.min() < 0 or named.max() >= N_BASE:
        raise ValueError("it hangs on vertices that the base mesh hm08 does not have")
    if not np.allclose(table[:, 3:6].sum(1), 1, atol=0.05) or min(d for _, _, d in scales) <= 0:
        raise ValueError("its weights do not add up to 1, or a scale is not above 0")
    mesh = place.with_name(head["obj_file"][0]).as_posix()
    if mesh not in texts:
        raise ValueError(f"{mesh} is not beside it")
    faces = _read_faces(texts[mesh])
    if faces.max() >= len(rows):
        raise ValueError("its .obj has more vertices than it")
    return Cut(
        place.with_suffix("").as_posix(), frozenset(tags), references, table[:, 3:6], table[:, 6:], tuple(scales),
        faces, _ranges(deleted),
    )  # fmt: skip


def _vertex(words: list[str]) -> list[float]:
    """Nine numbers: three base vertices, their weights, an offset. A line with one number glues to that vertex."""
    if len(words) not in (1, 6, 9):
        raise ValueError(f"a vertex has {len(words)} numbers")
    values = [float(word) for word in words]
    return values * 3 + [1, 0, 0, 0, 0, 0] if len(values) == 1 else values + [0.0] * (9 - len(values))


def _ranges(words: list[str]) -> NDArray[np.int64]:
    """ "3 7 - 9" to 3, 7, 8, 9."""
    found: list[int] = []
    for place, word in enumerate(words):
        if word == "-":
            found += range(found[-1] + 1, int(words[place + 1]))
        else:
            found.append(int(word))
    return np.array([vertex for vertex in found if 0 <= vertex < N_BASE], np.int64)


def _read_faces(text: str) -> IntArray:
    """Triangles of an .obj; larger faces are cut into fans."""
    faces: list[tuple[int, int, int]] = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "f":
            corners = [int(word.split("/")[0]) - 1 for word in words[1:]]
            faces += [(corners[0], b, c) for b, c in zip(corners[1:], corners[2:])]
    if not faces or np.min(faces) < 0:
        raise ValueError("its .obj has no faces")
    return np.array(faces, np.int32)


def place_vertices(cut: Cut, base: BaseMesh) -> NDArray[np.float64]:
    """(G, 3) metres, template coordinates: MakeHuman's rule on our base mesh.

    Errors: `InputError` for a garment that hangs on what our body does not have.
    """
    corners = base.vertices[cut.references]
    # The files' y points up and z to the viewer; an offset's unit is what the named vertices' distance says.
    spans = [abs(base.vertices[a, axis] - base.vertices[b, axis]) / d for axis, (a, b, d) in enumerate(cut.scales)]
    places = (cut.weights[..., None] * corners).sum(1) + cut.offsets * np.multiply(spans, [1, -1, -1])
    if not np.isfinite(places).all():
        raise InputError(f"{cut.name} hangs on eyes, teeth or joints, which our body has not: remove it")
    return places


def fit(cut: Cut, base: BaseMesh, body: DressedBody) -> Garment:
    """A garment on a body. Errors: `InputError` as of `place_vertices`."""
    places = place_vertices(cut, base)
    kind = _kind(cut, places, body.landmarks)
    level = _bind(cut, base, body.topology, places, kind)
    hides = np.zeros(body.n_body, bool)
    gone = cut.deleted[base.is_skin[cut.deleted]]
    hides[base.vertex[gone]] = True
    at = body.landmarks
    covers_trunk, covers_legs = False, False
    if kind == "suit":
        covers_trunk = bool(places[:, 1].min() < (at.hip_y + at.shoulder_y) / 2)
        covers_legs = bool(places[:, 1].max() > at.hip_y + 0.1)
    side = _sides(cut, places, at.ankle_y if kind == "shoes" else at.hip_y, kind == "shoes")
    if kind == "suit" and covers_trunk and covers_legs and len(np.unique(side)) == 1:
        side[:] = JOINED
    return Garment(cut.name, kind, level, side, covers_trunk, covers_legs, hides)


def _kind(cut: Cut, places: NDArray[np.float64], at: Landmarks) -> str:
    """By what it reaches: hats alone have a tag."""
    if places[:, 1].min() < at.eye[1]:
        return "hat" if "hats" in cut.tags else "hair"
    return "shoes" if places[:, 1].min() > at.knee_y else "suit"


def _sides(cut: Cut, places: NDArray[np.float64], line_y: float, above: bool) -> FloatArray:
    """LOWER for the loose parts of the mesh whose middle is below a height (above it, for socks), else UPPER."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = cut.faces[:, [0, 1]], cut.faces[:, [1, 2]]
    rows, columns = np.concatenate(ends).T
    links = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(places), len(places)))
    part = connected_components(links, directed=False)[1]
    low, high = np.full(part.max() + 1, np.inf), np.full(part.max() + 1, -np.inf)
    np.minimum.at(low, part, places[:, 1])
    np.maximum.at(high, part, places[:, 1])
    is_lower = ((low + high) / 2 > line_y) != above
    return np.where(is_lower[part], LOWER, UPPER).astype(np.float32)


def _bind(cut: Cut, base: BaseMesh, topology: BodyTopology, places: NDArray[np.float64], kind: str) -> Level:
    """Skinning and shape of a garment, those of the skin under the base vertices it hangs on."""
    from scipy.sparse import coo_matrix
    from scipy.spatial import cKDTree

    full = topology.levels["full"]
    allowed = np.ones(len(full.vertices), bool)
    if kind in ("hair", "hat"):  # else long hair would rise with the arms
        names = ("head", "neck", "torso") if kind == "hair" else ("head",)
        allowed = in_parts(topology, names)
    source = np.flatnonzero(allowed)
    tree = cKDTree(full.vertices[source])
    near = tree.query(base.vertices[cut.references].reshape(-1, 3), 4)[1].reshape(len(places), 12)
    # Weights of the file may be negative, those of the skin must not.
    share = np.maximum(cut.weights, 0)
    share = np.repeat(share / share.sum(1, keepdims=True), 4, axis=1) / 4
    # Cloth far from the skin follows all of it around, as a skirt does both legs.
    distance, around = tree.query(places, AROUND)
    loose = np.clip((distance[:, :1] - 0.02) / 0.04, 0, 1)
    near = source[np.concatenate([near, around], 1)]
    share = np.concatenate([share * (1 - loose), np.repeat(loose / AROUND, AROUND, 1)], 1)

    rows = np.repeat(np.arange(len(places)), near.shape[1])
    borrow = coo_matrix((share.ravel(), (rows, near.ravel())), shape=(len(places), len(full.vertices))).tocsr()
    indices, weights = strongest_bones(borrow @ dense_skin(full, len(topology.rig.bone_names)))
    basis = np.stack([borrow @ one for one in full.shape_basis])
    return replace(
        full,
        vertices=places.astype(np.float32),
        faces=cut.faces,
        skin_indices=indices,
        skin_weights=weights,
        shape_basis=basis.astype(np.float32),
        parts=full.parts[near[:, 0]],
    )
