import numpy as np
import pytest
import torch

from deformer_core.body.parametric import ParametricBody
from deformer_core.body.topology import BodyTopology
from deformer_core.data.sample import Batch, concatenate, pose_labels
from deformer_core.training.losses import (
    DeFormerLoss,
    LabelledMean,
    LossConfig,
    Outputs,
    PosePrior,
    count_labels,
    faces_of_edges,
)
from tests.training.conftest import flat_only


def perfect(batch: Batch, body: BodyTopology) -> Outputs:
    true = pose_labels(batch, ParametricBody(body, ("coarse", "middle", "full")))
    initial = {key: true[key] for key in ("vertices_coarse", "camera", "joints", "rotations", "shape")}
    spread = torch.zeros_like(true["joints"][..., :1])
    initial["located"] = torch.cat([true["uv"], true["joints"][..., 2:], spread], -1)
    layer = {key: true[key] for key in ("vertices_coarse", "camera", "joints")}
    final = {key: true[key] for key in ("vertices_coarse", "vertices_middle", "vertices_full", "joints", "camera")}
    return final | {"layers": [initial, layer]}


def disturbed(outputs: Outputs, generator: torch.Generator) -> Outputs:
    def change(value: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(value.shape, generator=generator)
        return (value + 0.02 * noise).requires_grad_()

    layers = [{key: change(value) for key, value in layer.items()} for layer in outputs["layers"]]
    return {key: change(value) for key, value in outputs.items() if key != "layers"} | {"layers": layers}


def test_zero_at_the_truth(body: BodyTopology, people: Batch) -> None:
    losses = DeFormerLoss(LossConfig(vertices_full=1.0), body)(perfect(people, body), people)
    for name, value in losses.items():
        assert float(value) < 2e-4, name  # rounding of normals; lengths are exact to 1e-6 m


def test_every_output_gets_a_gradient(body: BodyTopology, people: Batch, seed: int) -> None:
    batch = concatenate([people, flat_only(people)])
    outputs = disturbed(perfect(batch, body), torch.Generator().manual_seed(seed))
    DeFormerLoss(LossConfig(vertices_full=1.0), body)(outputs, batch)["total"].backward()
    final = {key: value for key, value in outputs.items() if key not in ("layers", "vertices_coarse")}
    for place in (final, *outputs["layers"]):
        for name, value in place.items():
            assert value.grad is not None and torch.isfinite(value.grad).all(), name
            assert (value.grad.flatten(1).abs().sum(1)[: len(people["box"])] > 0).all(), name


def test_people_without_3d_change_no_3d_term(body: BodyTopology, people: Batch, seed: int) -> None:
    loss = DeFormerLoss(LossConfig(), body)
    both = concatenate([people, flat_only(people)])
    outputs = disturbed(perfect(both, body), torch.Generator().manual_seed(seed))
    n = len(people["box"])
    first = {key: value[:n] for key, value in outputs.items() if key != "layers"}
    first["layers"] = [{key: value[:n] for key, value in layer.items()} for layer in outputs["layers"]]
    alone, mixed = loss(first, people), loss(outputs, both)
    for name, value in alone.items():
        if name not in ("uv_only", "located_uv", "shape_prior", "pose_prior", "total"):
            assert float(mixed[name].detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
    assert alone["uv_only"] == 0 and mixed["uv_only"] > 0
    assert alone["pose_prior"] == 0 and mixed["pose_prior"] > 0


def test_unlabelled_joints_do_not_count(body: BodyTopology, people: Batch) -> None:
    loss = DeFormerLoss(LossConfig(), body)
    batch = {**flat_only(people), "uv": people["uv"].clone(), "uv_weight": people["uv_weight"].clone()}
    batch["uv"][:, 3] += 0.3
    assert float(loss(perfect(people, body), batch)["uv_only"].detach()) > 0
    batch["uv_weight"][:, 3] = 0
    assert float(loss(perfect(people, body), batch)["uv_only"].detach()) < 1e-4


def test_joints_outside_of_the_crop_are_located_by_their_depth_alone(body: BodyTopology, people: Batch) -> None:
    loss = DeFormerLoss(LossConfig(), body)
    batch = {**people, "uv": people["uv"].clone()}
    batch["uv"][:, 3] = 1.2
    outputs = perfect(people, body)
    outputs["layers"][0]["located"][:, 3, :2] -= 0.3
    assert float(loss(outputs, batch)["located_uv"]) < 1e-6 < float(loss(outputs, people)["located_uv"])
    outputs["layers"][0]["located"][:, 3, 2] -= 0.3
    # One of the joints, a layer that counts by 0.3.
    expected = 10 * 0.3 * 0.3 / people["uv"].shape[1]
    assert float(loss(outputs, batch)["located_depth"]) == pytest.approx(expected, rel=1e-4)


def test_edges_and_normals_by_loops(body: BodyTopology, people: Batch, rng: np.random.Generator) -> None:
    mesh = body.levels["coarse"]
    true = pose_labels(people, ParametricBody(body))["vertices_coarse"][:1].double()
    moved = true + torch.from_numpy(rng.normal(0, 0.01, true.shape))
    loss = DeFormerLoss(LossConfig(), body).double()
    first = {key: value[:1].double() for key, value in people.items()}
    terms = loss._mesh_terms(moved, true, LabelledMean(first))
    t, m = true[0].numpy(), moved[0].numpy()
    lengths = [abs(np.linalg.norm(m[a] - m[b]) - np.linalg.norm(t[a] - t[b])) for a, b in mesh.edges]
    assert float(terms["edges"]) == pytest.approx(np.mean(lengths), rel=1e-6)
    sines: dict[tuple[int, int], list[float]] = {}
    for a, b, c in mesh.faces:
        normal = np.cross(t[b] - t[a], t[c] - t[a])
        for i, j in ((a, b), (b, c), (c, a)):
            edge = m[j] - m[i]
            sine = abs(edge @ normal) / np.linalg.norm(edge) / np.linalg.norm(normal)
            sines.setdefault((min(i, j), max(i, j)), []).append(sine)
    assert float(terms["normals"]) == pytest.approx(np.mean([np.mean(values) for values in sines.values()]), rel=1e-6)


def test_a_collapsed_mesh_has_finite_gradients(body: BodyTopology, people: Batch) -> None:
    outputs = perfect(people, body)
    point = torch.zeros_like(outputs["layers"][1]["vertices_coarse"]).requires_grad_()
    outputs["layers"][1]["vertices_coarse"] = point
    DeFormerLoss(LossConfig(), body)(outputs, people)["total"].backward()
    assert point.grad is not None and torch.isfinite(point.grad).all()


def test_pose_prior_is_least_at_the_mean(body: BodyTopology, people: Batch) -> None:
    rotations = people["rotations"].numpy()
    loss = DeFormerLoss(LossConfig(), body, PosePrior.of(rotations))
    batch = flat_only(people)
    mean = torch.from_numpy(rotations.mean(0)).expand_as(people["rotations"])
    at_mean = loss._rig_terms(mean, people["shape"], batch, LabelledMean(batch))["pose_prior"]
    typical = loss._rig_terms(people["rotations"], people["shape"], batch, LabelledMean(batch))["pose_prior"]
    assert float(at_mean) == pytest.approx(0, abs=1e-6) and float(typical) == pytest.approx(1, rel=0.05)


def test_faces_of_edges_at_a_border() -> None:
    faces = np.array([[0, 1, 2], [2, 1, 3]], np.int32)
    edges = np.array([[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]], np.int32)
    assert faces_of_edges(edges, faces).tolist() == [[0, 0], [0, 0], [0, 1], [1, 1], [1, 1]]


def test_mean_of_nobody_is_zero(people: Batch) -> None:
    mean = LabelledMean(flat_only(people))
    assert float(mean(torch.ones(6), "mesh")) == 0 and float(mean(torch.ones(6), "flat")) == 1


@pytest.mark.parametrize("cuts", [(7,), (1, 2, 3)])
def test_parts_with_the_mean_of_their_counts_make_the_whole(
    body: BodyTopology, people: Batch, seed: int, cuts: tuple[int, ...]
) -> None:
    """However unevenly labels are spread over parts (the last has no 3D label at all)."""
    loss = DeFormerLoss(LossConfig(), body)
    whole = concatenate([people, flat_only(people)])
    outputs = disturbed(perfect(whole, body), torch.Generator().manual_seed(seed))
    spans = [slice(start, stop) for start, stop in zip((0, *cuts), (*cuts, 12), strict=True)]

    def rows(values: Outputs, span: slice) -> Outputs:
        layers = [{key: value[span] for key, value in layer.items()} for layer in outputs["layers"]]
        return {key: value[span] for key, value in values.items() if key != "layers"} | {"layers": layers}

    parts = [{key: value[span] for key, value in whole.items()} for span in spans]
    counts = [count_labels(part) for part in parts]
    mean = {name: torch.stack([count[name] for count in counts]).mean() for name in counts[0]}
    found = [loss(rows(outputs, span), part, mean) for span, part in zip(spans, parts, strict=True)]
    for name, value in loss(outputs, whole).items():
        average = torch.stack([part[name] for part in found]).mean()
        assert float(average.detach()) == pytest.approx(float(value.detach()), rel=1e-5), name
