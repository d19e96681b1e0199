"""Every protocol on people that the test makes, with a model whose error is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology, RowBlend
from deformer_core.data.annotation import Annotation
from deformer_core.data.joint_sets import JOINT_SETS
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.errors import InputError
from deformer_core.geometry.camera import Intrinsics, crop_rotation
from deformer_core.training.figures import comparison, details
from deformer_core.training.protocol_run import leg_order, run_protocol
from deformer_core.training.protocols import PROTOCOLS, Protocol, protocol

COUNT = 10
SIZE = 32
BETWEEN = {  # what our joints lack, as means of what they have
    "pelvis": ("left_hip", "right_hip"), "neck": ("left_shoulder", "right_shoulder"), "head": ("left_ear", "right_ear"),
    "jaw": ("nose",), "spine": ("left_hip", "right_hip", "left_shoulder", "right_shoulder"),
}  # fmt: skip


def regressor(body: BodyTopology, names: tuple[str, ...]) -> RowBlend:
    """The named joints from the full mesh. What is still missing lies at the pelvis."""
    ours = body.levels["full"].joint_regressor.dense()
    rows = []
    for name in names:
        of = (name,) if name in body.joint_names else BETWEEN.get(name, BETWEEN["pelvis"])
        rows.append(ours[[body.joint_names.index(one) for one in of]].mean(0))
    matrix = np.stack(rows)
    return RowBlend.from_entries(*np.nonzero(matrix), matrix[np.nonzero(matrix)], matrix.shape)


@pytest.fixture(scope="module")
def smpl(body: BodyTopology) -> BodyTopology:
    """A body that has what the protocols need of SMPL."""
    extra = {"h36m": regressor(body, JOINT_SETS["h36m17"]), "smpl24": regressor(body, JOINT_SETS["smpl24"])}
    return replace(body, name="smpl", extra_regressors=extra)


@pytest.fixture
def meshes(smpl: BodyTopology, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rotations, shape, _ = PoseSampler(smpl).sample(rng, COUNT)
    posed = ParametricBody(smpl, ("full",))(torch.from_numpy(rotations), torch.from_numpy(shape))
    return {"rotations": rotations, "shape": shape, "full": posed["full"].numpy()}


@pytest.fixture
def people(smpl: BodyTopology, meshes: dict[str, np.ndarray]) -> list[Annotation]:
    """With all that any protocol asks for; the colour of the image says who it is."""

    def image(index: int) -> Callable[[], np.ndarray]:
        return lambda: np.full((100, 140, 3), 10 * index, np.uint8)

    found = []
    h36m = regressor(smpl, JOINT_SETS["h36m17"])
    for index in range(COUNT):
        joints = dict(zip(JOINT_SETS["h36m17"], h36m.apply(meshes["full"][index])))
        ours = [joints.get(name, np.zeros(3, np.float32)) for name in smpl.joint_names]
        found.append(
            Annotation(
                source=f"test:{index}",
                load_image=image(index),
                center=(30.0 + 8 * index, 50.0),
                side=40.0,
                intrinsics=Intrinsics(120.0, 120.0, 70.0, 50.0, 140, 100),
                uv=np.zeros((23, 2), np.float32),
                uv_weight=np.zeros(23, np.float32),
                joints=np.stack(ours),
                joints_weight=np.array([name in joints for name in smpl.joint_names], np.float32),
                named_joints={name: joints[name] for name in ("neck", "head")},
                body="smpl",
                rotations=meshes["rotations"][index],
                shape=meshes["shape"][index],
                tags={
                    "subject": 9 + 2 * (index % 2), "action": ("Walking", "Eating")[index % 2], "camera": "60457274",
                    "frame": 5 * index, "sequence": "outdoors", "gender": "female", "valid": 1,
                },  # fmt: skip
            )
        )
    return found


class Known:
    """Gives the true mesh, changed by a function."""

    def __init__(self, full: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.full, self.change = full, change

    def __call__(self, images: np.ndarray, box: np.ndarray) -> dict[str, np.ndarray]:
        who = np.round(images[:, SIZE // 2, SIZE // 2, 0] / 10).astype(int)
        turned = self.full[who] @ crop_rotation(torch.from_numpy(box)).numpy()
        return {"vertices_full": self.change(turned)}


def run(name: str, people: list[Annotation], model: Known, smpl: BodyTopology) -> dict[str, Any]:
    return run_protocol(protocol(name), people, model, SIZE, smpl, lambda gender: smpl)


PAPER = [name for name, entry in PROTOCOLS.items() if entry.dataset]


@pytest.mark.parametrize("name", PAPER)
def test_a_model_that_makes_people_a_tenth_too_large(
    name: str, people: list[Annotation], meshes: dict[str, np.ndarray], smpl: BodyTopology
) -> None:
    row = run(name, people, Known(meshes["full"], lambda mesh: 1.1 * mesh + [0.3, 0, 2.0]), smpl)
    entry = PROTOCOLS[name]
    names = JOINT_SETS["h36m17" if entry.regressor == "h36m" else "smpl24"]
    points = 1000 * regressor(smpl, names).apply(meshes["full"])
    root = points[:, [names.index(one) for one in entry.root]].mean(1, keepdims=True)
    joints = points[:, [names.index(one) for one in entry.joints]] - root
    assert row["people"] == COUNT
    assert row["mpjpe_mm"] == pytest.approx(0.1 * np.linalg.norm(joints, axis=-1).mean(), rel=1e-4)
    assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=0.01)
    if "pve_mm" in entry.undefined:
        assert row["pve_mm"].startswith("undefined: ")
    else:
        expected = 0.1 * np.linalg.norm(1000 * meshes["full"] - root, axis=-1).mean()
        assert row["pve_mm"] == pytest.approx(expected, rel=1e-4)
    assert row["per_joint"]["mpjpe_mm"].keys() == set(entry.joints)
    groups = {"h36m-p2": {"Walking": 5, "Eating": 5}}.get(name, {"outdoors": COUNT})
    assert {group: figures["people"] for group, figures in row["per_group"].items()} == groups
    assert "joint head" in details(row)


def test_human36m_takes_its_frames_alone(
    people: list[Annotation], meshes: dict[str, np.ndarray], smpl: BodyTopology
) -> None:
    others = ({"subject": 8}, {"camera": "54138969"}, {"frame": 12})
    changed = [replace(one, tags={**one.tags, **other}) for one, other in zip(people[1:4], others)]
    model = Known(meshes["full"], lambda mesh: mesh)
    assert run("h36m-p2", [people[0], *changed, people[4]], model, smpl)["people"] == 2
    with pytest.raises(InputError, match="every 5th frame"):
        run("h36m-p2", changed, model, smpl)
    with pytest.raises(InputError, match="test:0 does not say its subject"):
        run("h36m-p2", [replace(people[0], tags={})], model, smpl)


@pytest.mark.parametrize("order", ["h36m17", "h36m17_spin"])
def test_either_order_of_the_legs_gives_the_same_joints(
    order: str, people: list[Annotation], meshes: dict[str, np.ndarray], smpl: BodyTopology
) -> None:
    other = replace(smpl, extra_regressors={"h36m": regressor(smpl, JOINT_SETS[order])})
    assert leg_order(other.extra_regressors["h36m"].apply(smpl.levels["full"].vertices)) == order
    row = run("h36m-p2", people, Known(meshes["full"], lambda mesh: mesh), other)  # the labels are by name
    assert row["mpjpe_mm"] == pytest.approx(0, abs=0.01)


def test_a_regressor_of_other_joints_is_refused(smpl: BodyTopology) -> None:
    with pytest.raises(InputError, match="neither of the known orders"):
        leg_order(regressor(smpl, JOINT_SETS["smpl24"][:17]).apply(smpl.levels["full"].vertices))


def test_exchanged_legs_of_labels_are_found(
    people: list[Annotation], meshes: dict[str, np.ndarray], smpl: BodyTopology
) -> None:
    rows = list(range(23))
    for leg in ("hip", "knee", "ankle"):
        a, b = smpl.joint_names.index(f"left_{leg}"), smpl.joint_names.index(f"right_{leg}")
        rows[a], rows[b] = b, a
    swapped = [replace(one, joints=one.joints[rows]) for one in people if one.joints is not None]
    with pytest.raises(InputError, match="legs are exchanged"):
        run("h36m-p2", swapped, Known(meshes["full"], lambda mesh: mesh), smpl)


def test_the_two_lines_differ_on_the_same_people(
    people: list[Annotation], meshes: dict[str, np.ndarray], smpl: BodyTopology, body: BodyTopology
) -> None:
    """Labels fitted with the female body: METRO's line poses the neutral one, SPIN's the female."""
    full = body.levels["full"]
    larger = replace(body, levels={**body.levels, "full": replace(full, vertices=1.2 * full.vertices)})
    fitted = [replace(one, body="smpl_female") for one in people]
    model = Known(meshes["full"], lambda mesh: mesh)

    def errors(name: str) -> float:
        asked: list[str] = []
        row = run_protocol(protocol(name), fitted, model, SIZE, smpl, lambda gender: asked.append(gender) or larger)
        assert set(asked) == ({"female"} if name == "3dpw-spin" else set())
        return row["pve_mm"]

    assert errors("3dpw-metro") == pytest.approx(0, abs=0.01)
    assert errors("3dpw-spin") > 20


def test_what_is_missing_is_named(
    people: list[Annotation], meshes: dict[str, np.ndarray], smpl: BodyTopology, body: BodyTopology
) -> None:
    model = Known(meshes["full"], lambda mesh: mesh)
    with pytest.raises(InputError, match="J_regressor_h36m.npy"):
        run("3dpw-metro", people, model, body)
    with pytest.raises(InputError, match="test:0 .*'neck'"):
        run("h36m-p2", [replace(people[0], named_joints={})], model, smpl)
    with pytest.raises(InputError, match="test:0 has no mesh"):
        run("3dpw-spin", [replace(people[0], rotations=None)], model, smpl)
    with pytest.raises(InputError, match="h36m-p2, 3dpw-metro"):
        protocol("3dpw")


@pytest.mark.parametrize("entry", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_protocol_says_what_it_needs(entry: Protocol) -> None:
    assert entry.summary and entry.files and entry.frames
    assert all(set(row) <= {"pve_mm", "mpjpe_mm", "pa_mpjpe_mm"} - set(entry.undefined) for row in entry.paper.values())


def test_published_rows_stand_above_ours() -> None:
    text = comparison({"mpjpe_mm": 50.25, "pa_mpjpe_mm": 33.0, "people": 3}, "mine", PROTOCOLS["h36m-p2"].paper)
    lines = text.splitlines()
    assert lines[-1].split() == ["mine", "50.2", "33.0"] and lines[1].split() == ["SPIN", "-", "41.1"]
    assert any(line.split() == ["DeFormer", "HRNet-W48", "44.8", "31.6"] for line in lines)
