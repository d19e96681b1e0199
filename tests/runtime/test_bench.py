"""`deformer bench` runs, and every line of its table is there. Nothing here depends on how fast the machine is."""

import json
import math

import numpy as np
import pytest
import torch

from deformer_core.cli import DONE, main
from deformer_core.runtime import bench as benchmark
from deformer_core.runtime import bench_attention as attention
from deformer_core.runtime.bench import HEADER, QUICK, Row, line, medians
from deformer_core.runtime.bench_parts import PARTS


@pytest.fixture(scope="module")
def record(checkpoint, tmp_path_factory):
    """The whole quick run, as a user would start it."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFORMER_CACHE", str(folder))
        patch.setattr(benchmark, "ENGINES", ("auto", "onnxruntime", "torch", "tensorrt"))  # OpenVINO adds seconds
        assert main(["bench", "--quick", "--model", str(checkpoint), "--json", str(folder / "bench.json")]) == DONE
    return json.loads((folder / "bench.json").read_text())


def test_every_row_is_there_and_finite(record):
    rows = {(row["what"], row["how"], row["size"]): row for row in record["rows"]}
    for engine in ("onnxruntime", "torch"):
        for batch in QUICK.batches:
            for part in (*PARTS, "whole engine"):
                assert (part, engine, f"batch {batch}") in rows
        for people in ("1 person", "3 people", "8 people"):
            assert ("frame to meshes", engine, people) in rows
        assert ("process, 4 people", engine, "peak") in rows
    for queries in QUICK.sizes:
        for kind in ("forward", "forward and backward"):
            for name in QUICK.formulations:
                assert (f"attention, {kind}", name, f"{queries} queries") in rows
    absent = {row["how"] for row in record["rows"] if row["value"] is None}
    assert absent <= {"tensorrt"}
    for row in record["rows"]:
        assert (row["value"] is None) == bool(row["note"])
        assert row["value"] is None or (math.isfinite(row["value"]) and row["value"] > 0)
    assert record["machine"]["torch"] == torch.__version__ and record["threads"] == 1


def test_ratios_are_to_the_backbone_and_to_dense_attention(record):
    ratio = {(row["what"], row["how"], row["size"]): row["ratio"] for row in record["rows"]}
    assert ratio["backbone", "torch", "batch 1"] == ratio["backbone", "onnxruntime", "batch 4"] == 1
    assert ratio["attention, forward", "dense SDPA", "445 queries"] == 1
    assert ratio["frame to meshes", "torch", "1 person"] == 1


@pytest.mark.parametrize("queries", QUICK.sizes)
def test_formulations_agree(queries):
    problem = attention.make_problem(queries)
    assert problem.scap.n_joints + problem.scap.n_vertices == queries
    dense = attention.formulation("dense SDPA", problem)(*problem.qkv)
    for name in ("explicit dense", "tiles"):
        torch.testing.assert_close(attention.formulation(name, problem)(*problem.qkv), dense, atol=1e-5, rtol=0)


def test_a_tube_is_linked_like_a_body(rng):
    scap = attention.tube_scap(14, 300)
    assert (scap.n_joints, scap.n_vertices) == (14, 300)
    links = np.diff(scap.indptr)[scap.slots[scap.n_joints + scap.n_registers :]]
    assert np.median(links) == 20  # itself, two rings of 6 and 12, and its joint
    assert (scap.dense_mask() == scap.dense_mask().T).all()


def test_extra_memory_is_that_of_the_run():
    def run() -> None:
        torch.ones(50_000_000)

    used = attention.extra_memory(run)
    assert used is None or used == pytest.approx(200, rel=0.2)


def test_the_table_tells_why_something_is_missing():
    measured = line(Row("a", "torch", "batch 1", 12.3456, ratio=1.5))
    assert measured.index("12.35 ms") == HEADER.index("median") and measured.index("1.50") == HEADER.index("ratio")
    assert "not measured  no beads" in line(Row("b", "abacus", "-", None, note="no beads"))


def test_cases_take_turns():
    order = []
    cases = {name: lambda name=name: order.append(name) for name in "ab"}
    assert medians(cases, QUICK).keys() == {"a", "b"} and order == ["a", "b"]
