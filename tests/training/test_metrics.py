import numpy as np
import pytest

from deformer_core.training.metrics import (
    EVALUATED,
    LIMBS,
    auc_3d,
    heading_error,
    joint_errors,
    limb_length_ratio,
    mpjpe,
    pa_mpjpe,
    pck,
    pck_3d,
    per_group,
    per_joint,
    summarize_3d,
)

NAMES = ("left_hip", "right_hip", *sorted(set(EVALUATED) - {"left_hip", "right_hip"}), "left_heel")


def horn_error(source: np.ndarray, target: np.ndarray) -> float:
    """An independent way: the rotation as the eigenvector of Horn's quaternion matrix (JOSA A 1987), in loops."""
    a, b = source - source.mean(0), target - target.mean(0)
    s = np.zeros((3, 3))
    for p, q in zip(a, b):
        s += np.outer(p, q)
    n = np.array(
        [
            [s[0, 0] + s[1, 1] + s[2, 2], s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]],
            [0, s[0, 0] - s[1, 1] - s[2, 2], s[0, 1] + s[1, 0], s[2, 0] + s[0, 2]],
            [0, 0, s[1, 1] - s[0, 0] - s[2, 2], s[1, 2] + s[2, 1]],
            [0, 0, 0, s[2, 2] - s[0, 0] - s[1, 1]],
        ]
    )
    w, x, y, z = np.linalg.eigh(np.triu(n) + np.triu(n, 1).T)[1][:, -1]
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )
    turned = a @ rotation.T
    scale = (turned * b).sum() / (a * a).sum()
    return float(np.mean([np.sqrt(((scale * p - q) ** 2).sum()) for p, q in zip(turned, b)]))


def test_pa_mpjpe_golden_value() -> None:
    true = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]], float) * 1000
    predicted = true.copy()
    predicted[0, 1, 0] += 100
    assert pa_mpjpe(predicted, true)[0] == pytest.approx(29.968560, abs=1e-6)


def test_pa_mpjpe_agrees_with_quaternions(rng: np.random.Generator) -> None:
    true = rng.normal(0, 300, (20, 17, 3))
    predicted = true + rng.normal(0, 150, true.shape)
    expected = [horn_error(p, t) for p, t in zip(predicted, true)]
    np.testing.assert_allclose(pa_mpjpe(predicted, true), expected, rtol=1e-9)


def test_mirrored_prediction_is_not_aligned_away(rng: np.random.Generator) -> None:
    true = rng.normal(0, 300, (5, 17, 3))
    assert (pa_mpjpe(true * [-1, 1, 1], true) > 30).all()
    assert (pa_mpjpe(-true, true) > 30).all()


def test_coinciding_points_give_the_documented_value(rng: np.random.Generator) -> None:
    true = rng.normal(0, 300, (2, 17, 3))
    spread = np.linalg.norm(true - true.mean(1, keepdims=True), axis=-1).mean(1)
    np.testing.assert_allclose(pa_mpjpe(np.full_like(true, 7.0), true), spread)


def test_mpjpe_by_loops(rng: np.random.Generator) -> None:
    predicted, true = rng.normal(0, 100, (2, 4, 5, 3))
    expected = [np.mean([sum((a - b) ** 2) ** 0.5 for a, b in zip(p, t)]) for p, t in zip(predicted, true)]
    np.testing.assert_allclose(mpjpe(predicted, true), expected)


def test_pck_by_hand() -> None:
    true = np.zeros((2, 3, 2))
    predicted = np.array([[[3, 4], [9, 0], [0, 11]], [[0, 0], [0, 9.9], [99, 0]]], float)
    labelled = np.array([[2, 1, 2], [1, 2, 0]])
    side = np.array([100.0, 50.0])
    # Person 1, limit 10: 5 and 9 within, 11 not; person 2, limit 5: 0 within, 9.9 not, the third has no label.
    assert pck(predicted, true, labelled, side, 0.1) == pytest.approx(3 / 5)
    assert pck(predicted, true, labelled, side, 0.06) == pytest.approx(2 / 5)
    assert np.isnan(pck(predicted, true, np.zeros((2, 3)), side, 0.1))


def test_limb_ratio_by_hand(rng: np.random.Generator) -> None:
    true = rng.normal(0, 300, (3, len(NAMES), 3))
    np.testing.assert_allclose(limb_length_ratio(0.8 * true, true, NAMES), 0.8)
    shorter = true.copy()
    elbow, wrist = NAMES.index("left_elbow"), NAMES.index("left_wrist")
    shorter[:, wrist] = (shorter[:, wrist] + shorter[:, elbow]) / 2
    ratio = limb_length_ratio(shorter, true, NAMES)
    assert sorted(ratio[0]) == pytest.approx([0.5] + [1.0] * (len(LIMBS) - 1))


@pytest.mark.parametrize("angle", [0, 30, 90, 135, 180])
def test_heading_error_by_hand(angle: float) -> None:
    true = np.zeros((1, len(NAMES), 3))
    true[0, 0], true[0, 1] = [100, 20, 0], [-100, -20, 0]
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    assert heading_error(true @ turn.T, true, NAMES)[0] == pytest.approx(angle, abs=1e-5)


def test_a_perfect_prediction(rng: np.random.Generator) -> None:
    joints, vertices = rng.normal(0, 300, (4, len(NAMES), 3)), rng.normal(0, 300, (4, 30, 3))
    row = summarize_3d(joints, joints, vertices, vertices, NAMES)
    assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-9)
    assert (row["mpjpe_mm"], row["pve_mm"], row["limb_ratio"], row["heading_over_90"]) == (0, 0, 1, 0)


def test_the_feet_count_only_among_all_joints(rng: np.random.Generator) -> None:
    joints, vertices = rng.normal(0, 300, (4, len(NAMES), 3)), rng.normal(0, 300, (4, 30, 3))
    moved = joints.copy()
    moved[:, NAMES.index("left_heel")] += 100
    row = summarize_3d(moved, joints, vertices, vertices, NAMES)
    assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-9) and row["mpjpe_mm"] == 0
    assert row["pa_mpjpe_all_mm"] > 1


def test_3d_pck_and_auc_by_hand() -> None:
    """Errors 0, 50, 150 and 151 mm: limits of 0 to 150 in steps of 5 find 1, 1, 2 ... of four joints."""
    true = np.zeros((1, 4, 3))
    predicted = np.array([[[0, 0, 0], [30, 40, 0], [0, 0, -150], [151, 0, 0]]], float)
    assert pck_3d(predicted, true) == pytest.approx([3 / 4])
    assert pck_3d(predicted, true, 50) == pytest.approx([1 / 2])
    assert auc_3d(predicted, true) == pytest.approx([(31 + 21 + 1 + 0) / 31 / 4])


def test_per_joint_and_per_group(rng: np.random.Generator) -> None:
    true, predicted = rng.normal(0, 300, (2, 6, 3, 3))
    errors = joint_errors(predicted, true)
    means = per_joint(errors, ("a", "b", "c"))
    assert means["b"] == pytest.approx(np.mean([np.linalg.norm(p[1] - t[1]) for p, t in zip(predicted, true)]))
    groups = ["sit", "walk", "walk", "sit", "walk", "eat"]
    table = per_group({"mpjpe_mm": mpjpe(predicted, true)}, groups)
    assert list(table) == ["eat", "sit", "walk"]
    assert table["walk"] == pytest.approx({"mpjpe_mm": errors[[1, 2, 4]].mean(), "people": 3})
