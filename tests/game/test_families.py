"""The families of games, and games read from a run directory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comal_fast.game import check_matrix, comal, has_strict_cycle, nash_policy, paper_game
from comal_fast.game.families import FAMILIES, load_empirical, make_game


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(3, 40), st.integers(0, 10**6))
def test_a_family_makes_the_same_valid_game_again(name, size, seed):
    game = make_game(name, size, seed)
    check_matrix(game.matrix)
    assert game.matrix.shape == (size, size) and len(set(game.names)) == size
    np.testing.assert_array_equal(game.matrix, make_game(name, size, seed).matrix)
    others = [make_game(name, size, seed + k).matrix for k in range(1, 30)]
    assert not all(np.array_equal(game.matrix, other) for other in others)  # 3 × 3 may coincide
    if name == "bradley-terry":
        assert not has_strict_cycle(game.matrix)
    if name == "cyclic":
        assert has_strict_cycle(game.matrix)


def test_a_cyclic_game_is_rock_paper_scissors():
    for n in (3, 4, 5, 8):
        wins = make_game("cyclic", n, 0).matrix - 0.5
        for i in range(n):
            for step in range(1, (n + 1) // 2):
                assert 0.1 <= wins[i, (i + step) % n] <= 0.4
            if n % 2 == 0:
                assert wins[i, (i + n // 2) % n] == 0
        assert (nash_policy(wins + 0.5) > 0).sum() >= (3 if n % 2 else 2)


def test_blotto_is_thirds():
    matrix = make_game("blotto", 20, 3).matrix
    off = matrix[~np.eye(20, dtype=bool)]
    np.testing.assert_allclose(np.minimum(off, 1 - off), 1 / 3, atol=1e-15)


def test_paper_and_defaults():
    np.testing.assert_array_equal(make_game("paper").matrix, paper_game().matrix)
    assert len(make_game("random").names) == 10


@pytest.mark.parametrize(
    ("name", "size", "seed", "message"),
    [
        ("paper", 4, None, "--size has no effect with --game paper"),
        ("paper", None, 4, "--seed has no effect with --game paper"),
        ("random", 1, None, "--size 1: a random game has 2 to 10000 responses"),
        ("cyclic", 2, None, "--size 2: a cyclic game has 3 to 10000"),
        ("blotto", 10_001, None, "--size 10001"),
        ("random", None, -1, "--seed -1"),
    ],
)
def test_refused(name, size, seed, message):
    with pytest.raises(ValueError, match=message):
        make_game(name, size, seed)


CYCLE = [[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]
LADDER = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.7], [0.2, 0.3, 0.5]]


@pytest.fixture
def run_dir(tmp_path):
    def write(iteration: int, matrices: dict[int, list]) -> None:
        folder = tmp_path / "my-run" / "iterations" / f"{iteration:04d}"
        folder.mkdir(parents=True)
        table = pa.table(
            {
                "prompt_id": pa.array(list(matrices), pa.int32()),
                "matrix": [np.ravel(m).tolist() for m in matrices.values()],
            }
        )
        pq.write_table(table, folder / "judgments.parquet")

    write(1, {4: LADDER, 9: CYCLE})
    write(2, {6: LADDER, 7: LADDER})
    return tmp_path / "my-run"


def test_empirical_game(run_dir):
    game, label = load_empirical(run_dir)
    assert game.matrix.tolist() == LADDER and label == "prompt 6 of iteration 2, my-run"
    game, label = load_empirical(run_dir, iteration=1)
    assert game.matrix.tolist() == CYCLE and label == "prompt 9 of iteration 1, my-run"
    game, label = load_empirical(run_dir, iteration=1, prompt=4)
    assert game.matrix.tolist() == LADDER and game.names == ("a", "b", "c")


def test_empirical_refusals(run_dir, tmp_path):
    with pytest.raises(ValueError, match=r"--iteration 3: not judged in .*; judged are 1, 2"):
        load_empirical(run_dir, iteration=3)
    with pytest.raises(ValueError, match=r"--prompt 5: not in .*, whose 2 prompts are 6 to 7"):
        load_empirical(run_dir, prompt=5)
    with pytest.raises(ValueError, match="absent: no such folder"):
        load_empirical(tmp_path / "absent")
    with pytest.raises(ValueError, match="the judge phase has not run"):
        load_empirical(tmp_path)
    broken = run_dir / "iterations" / "0002" / "judgments.parquet"
    pq.write_table(pa.table({"prompt_id": [1], "matrix": [[0.5, 0.4, 0.5]]}), broken)
    with pytest.raises(ValueError, match="prompt 1: 3 entries make no square matrix"):
        load_empirical(run_dir)
    pq.write_table(pa.table({"prompt_id": [1], "matrix": [[0.5, 0.4, 0.5, 0.5]]}), broken)
    with pytest.raises(ValueError, match=r"prompt 1: P\[0\]\[1\] \+ P\[1\]\[0\] = 0.9"):
        load_empirical(run_dir)
    broken.write_text(json.dumps({"matrix": CYCLE}))
    with pytest.raises(ValueError, match="not a table of judgments"):
        load_empirical(run_dir)


@pytest.mark.slow
def test_ten_thousand_responses():
    matrix = make_game("blotto", 10_000, 0).matrix
    trajectory = comal(matrix, prox="dro", outer=2, inner=3, tau=1.0)
    assert trajectory.policies.shape == (3, 10_000)
    np.testing.assert_allclose(trajectory.policies.sum(axis=1), 1, atol=1e-12)
    gap = 2 * (matrix @ trajectory.policies.T - 0.5).max(axis=0)
    assert gap[2] < gap[1] < gap[0]
