"""A bag of our node as a dataset: what the message says is what is learned, unless it has been corrected."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'deformer[ros]'")
from recorded import BOXES, IMAGE, START, STEP, StoragePlugin, of, scene, walkers, write_bag
from recorded import read as read_messages

from deformer_core.body.parametric import ParametricBody
from deformer_core.data.annotation import crop
from deformer_core.data.readers import open_dataset
from deformer_core.data.sample import collate, pose_labels
from deformer_core.data.synthetic.poses import PoseSampler
from deformer_core.errors import InputError
from deformer_core.geometry.camera import project_crop
from deformer_ros.bag import DEFAULTS, process_bag
from deformer_ros.body_frames import BodyFrames
from deformer_ros.recorded import fit_shape, local_rotations

COUNT = 4


@pytest.fixture(params=[StoragePlugin.MCAP, StoragePlugin.SQLITE3], ids=["mcap", "sqlite3"])
def bag(request: Any, tmp_path: Path, rng: np.random.Generator, detector: Any, load: Any, checkpoint: Path) -> Path:
    detector.boxes = BOXES
    source = write_bag(tmp_path / "in", request.param, scene(walkers(COUNT), rng))
    settings = replace(DEFAULTS, mesh_level="coarse", marker_level="coarse", checkpoint=str(checkpoint))
    process_bag(source, tmp_path / "out", (IMAGE,), settings=settings, load=load, report=lambda line: None)
    return tmp_path / "out"


def test_labels_are_the_messages(bag: Path, body: Any) -> None:
    people = pickle.loads(pickle.dumps(open_dataset(f"recorded:{bag}", body)))
    assert len(people) == 2 * COUNT and len(open_dataset(f"recorded:{bag}?every=3", body)) == 4
    (first, *_) = of(read_messages(bag), "/human_mesh/meshes")
    human = first.decoded("deformer_ros/msg/HumanMeshArray").humans[1]
    person = people[1]
    assert person.tags == {"track": human.id, "stamp": START}
    np.testing.assert_array_equal(person.load_image(), walkers(1)[0])
    np.testing.assert_allclose(person.joints.ravel(), human.joints, atol=1e-6)
    np.testing.assert_allclose(person.translation, human.translation, atol=1e-6)
    assert person.intrinsics.fx == 300 and (person.intrinsics.width, person.intrinsics.height) == (320, 240)
    sample = crop(person, body, 128)
    batch = collate([sample], body)
    shown = batch["uv_weight"][0] > 0
    uv = project_crop(batch["joints"], batch["camera"], batch["box"])
    torch.testing.assert_close(uv[0][shown], batch["uv"][0][shown], atol=1e-3, rtol=0)
    # The random model shows the template, so the rig can follow it.
    assert person.body == "anny"
    posed = pose_labels(batch, ParametricBody(body))["joints"]
    assert float((posed - batch["joints"]).norm(dim=-1).max()) < 0.03


def test_corrections(bag: Path, body: Any) -> None:
    track = [person.tags["track"] for person in open_dataset(f"recorded:{bag}", body)[:2]]
    path = bag / "corrections.json"
    moved = {"stamp": START, "id": track[1], "keypoints": {"left_wrist": [200, 100], "right_knee": None}}
    path.write_text(json.dumps([{"stamp": START, "id": track[0], "drop": True}, moved]))
    people = open_dataset(f"recorded:{bag}", body)
    assert len(people) == 2 * COUNT - 1
    wrist, knee = (body.joint_names.index(name) for name in ("left_wrist", "right_knee"))
    person = people[0]
    assert person.uv[wrist].tolist() == [200, 100] and person.uv_weight[wrist] == 1 and person.uv_weight[knee] == 0
    assert person.joints_weight[[wrist, knee]].sum() == 0 and person.joints_weight.sum() == 21
    assert person.rotations is None and people[1].rotations is not None

    path.write_text(json.dumps([{**moved, "keypoints": {"left_hand": [1, 2]}}]))
    with pytest.raises(InputError, match="names the joint 'left_hand'"):
        open_dataset(f"recorded:{bag}", body)[1]
    path.write_text(json.dumps([moved, {"id": 3}]))
    with pytest.raises(InputError, match="corrections.json: record 1 has a missing or wrong field"):
        open_dataset(f"recorded:{bag}", body)
    path.write_text(json.dumps([{**moved, "stamp": START + STEP // 2}]))
    with pytest.raises(InputError, match="corrections.json corrects person .* does not have"):
        open_dataset(f"recorded:{bag}", body)


def test_bags_without_people_say_what_to_do(tmp_path: Path, rng: np.random.Generator, body: Any) -> None:
    bag = write_bag(tmp_path / "in", StoragePlugin.MCAP, scene(walkers(1), rng))
    with pytest.raises(InputError, match="0 topics of type HumanMeshArray: record images"):
        open_dataset(f"recorded:{bag}", body)
    with pytest.raises(InputError, match="no topic /rear"):
        open_dataset(f"recorded:{bag}?images=/rear", body)


def test_shapes_come_back_from_posed_bodies(body: Any, rng: np.random.Generator) -> None:
    """From the true rotations, and from those that the node measures on the mesh."""
    rotations, shapes, _ = PoseSampler(body).sample(rng, 4)
    with torch.no_grad():
        posed = ParametricBody(body, ("coarse",))(torch.from_numpy(rotations), torch.from_numpy(shapes))
    world = torch.from_numpy(BodyFrames(body, "coarse")(posed["coarse"].numpy()).rotations).float()
    for turn, measured, vertices in zip(torch.from_numpy(rotations), world, posed["coarse"]):
        assert fit_shape(body, "coarse", turn, vertices)[1] < 0.005
        assert fit_shape(body, "coarse", local_rotations(measured, body), vertices)[1] < 0.02
