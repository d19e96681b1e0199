from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch
from deformer_core.geometry.camera import project_crop
from deformer_core.training.board import Board, flatten, pictures_of
from deformer_core.training.pictures import SIZE, draw_person, see


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Board(tmp_path)
    for step in (1, 2, 3):
        board.scalars(step, {"total": 3.0 / step, "validation": {"poses": {"pa_mpjpe_mm": 50 + step}}, "name": "x"})
    board.close()
    board = Board(tmp_path, step=3)  # resumed: step 3 comes again
    board.scalars(3, {"total": 7.0})
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:, 3:, 0] = 255
    board.pictures(3, {"person_0": picture})
    board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("total")] == [(1, 3.0), (2, 1.5), (3, 7.0)]
    assert [event.value for event in events.Scalars("validation/poses/pa_mpjpe_mm")] == [51, 52]
    assert (events.Images("person_0")[0].width, events.Images("person_0")[0].height) == (6, 4)


def test_without_tensorboard_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    board = Board(tmp_path)
    assert "pip install tensorboard" in board.missing
    board.scalars(1, {"total": 1.0})
    board.pictures(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    board.close()
    assert not list(tmp_path.iterdir())


def test_nested_names() -> None:
    assert dict(flatten({"a": 1, "b": {"c": {"d": 2.5}, "e": "text"}})) == {"a": 1.0, "b/c/d": 2.5}


def test_a_seen_body_projects_as_the_model_does(people: Batch, body: BodyTopology) -> None:
    uv = project_crop(people["joints"], people["camera"], people["box"]).numpy()
    for row in range(3):
        seen = see(*(people[key][row].numpy() for key in ("joints", "camera", "box")))
        points = (seen.vertices + seen.translation) @ seen.intrinsics.T
        np.testing.assert_allclose(points[:, :2] / points[:, 2:], (uv[row] + 1) * SIZE / 2, atol=0.05)


def test_panels(people: Batch, body: BodyTopology) -> None:
    """The overlay changes only where the body is; a predicted body that is the true one gives two equal silhouettes."""
    mesh = ParametricBody(body)(people["rotations"], people["shape"])["coarse"].numpy()
    box, camera = people["box"].numpy(), people["camera"].numpy()
    image = np.full((128, 128, 3), 60, np.uint8)
    picture = draw_person(image, box[0], mesh[0], camera[0], body.levels["coarse"].faces, mesh[0])
    assert picture.shape == (SIZE, 4 * SIZE, 3) and picture.dtype == np.uint8
    crop, overlay, side, true_side = np.split(picture, 4, 1)
    assert (crop == 60).all() and 0.02 < (overlay != crop).any(-1).mean() < 0.9
    empty = np.abs(side.astype(int) - true_side).max(-1) == 0
    colored = np.ptp(side.astype(int), axis=-1) > 20
    assert 0.01 < colored.mean() < 0.7 and not (colored & empty).any()  # the same places, in another colour


def test_pictures_of_a_batch(people: Batch, body: BodyTopology) -> None:
    mesh = ParametricBody(body)(people["rotations"], people["shape"])["coarse"]
    outputs: dict[str, Any] = {"layers": [{}, {"vertices_coarse": mesh, "camera": people["camera"]}]}
    pictures = pictures_of(outputs, people, body, "coarse", count=2)
    assert list(pictures) == ["person_0", "person_1"] and pictures["person_0"].shape[1] == 4 * SIZE
    flat = people | {"has_mesh": torch.zeros_like(people["has_mesh"]), "images": torch.zeros(6, 8, 8, 3).byte()}
    pictures = pictures_of(outputs, flat, body, "coarse", count=1)
    assert pictures["person_0"].shape[1] == 3 * SIZE and (pictures["person_0"][:, :SIZE] == 0).all()
