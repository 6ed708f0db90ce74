"""Bad matrices, starts and options: one line that names what is wrong and where."""

import json

import numpy as np
import pytest

from comal_fast.game import (
    check_matrix,
    check_start,
    comal,
    duality_gap,
    inpo,
    ipo,
    load_game,
    nash_policy,
)

GOOD = [[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]]


def altered(i: int, j: int, value: object) -> list[list[object]]:
    rows: list[list[object]] = [list(row) for row in GOOD]
    rows[i][j] = value
    return rows


BAD_FILES = [
    ("[[0.5, 0.5], [0.5", "malformed JSON at line 1, column"),
    ("", "malformed JSON"),
    ("[" * 100_000, "no matrix"),
    ("3", "list of lists, not int"),
    ("null", "list of lists, not NoneType"),
    ("[]", "at least 2 responses, but it has 0"),
    ("[[0.5]]", "at least 2 responses, but it has 1"),
    ("[[0.5, 0.5]]", "square, but row 0 has 2 entries and there are 1 rows"),
    ("[[0.5, 0.5], [0.5]]", "square, but row 1 has 1"),
    ("[[0.5, 0.5], 7]", "row 1 must be a list, not int"),
    (json.dumps(altered(1, 2, "x")), r'P\[1\]\[2\] = "x" is not a number'),
    (json.dumps(altered(1, 2, True)), r"P\[1\]\[2\] = true is not a number"),
    (json.dumps(altered(1, 2, None)), r"P\[1\]\[2\] = null is not a number"),
    (json.dumps(altered(1, 2, float("nan"))), r"P\[1\]\[2\] is NaN"),
    (json.dumps(altered(1, 2, float("inf"))), r"P\[1\]\[2\] = inf is outside \[0, 1\]"),
    (json.dumps(altered(0, 1, -0.1)), r"P\[0\]\[1\] = -0.1 is outside"),
    (json.dumps(altered(2, 0, 10**400)), r"P\[2\]\[0\] = an integer is outside"),
    (json.dumps(altered(2, 0, 0.3)), r"P\[0\]\[2\] \+ P\[2\]\[0\] = 1.1; it must be 1"),
    (json.dumps(altered(1, 1, 0.4)), r"P\[1\]\[1\] = 0.4; the diagonal must be 0.5"),
    ('{"matrix": [[0.5, 0.5], [0.5, 0.5]], "name": []}', "unknown key 'name'"),
    ('{"names": ["a"]}', "key 'matrix' is missing"),
    ('{"matrix": [[0.5, 0.5], [0.5, 0.5]], "names": ["a"]}', "1 entries for 2"),
    ('{"matrix": [[0.5, 0.5], [0.5, 0.5]], "names": ["a", 1]}', "list of 2 strings"),
    ('{"matrix": [[0.5, 0.5], [0.5, 0.5]], "names": ["a", "a"]}', "'a' twice"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_bad_file(tmp_path, text, message):
    path = tmp_path / "game.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_game(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match="absent.json: no such file"):
        load_game(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="cannot be read"):
        load_game(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        load_game(tmp_path / "binary")


def test_good_files(tmp_path):
    path = tmp_path / "game.json"
    path.write_text(json.dumps(GOOD))
    assert load_game(path).names == ("a", "b", "c")
    path.write_text(json.dumps({"matrix": GOOD, "names": ["x", "y", "z"]}))
    game = load_game(str(path))
    assert game.names == ("x", "y", "z") and game.matrix.tolist() == GOOD
    path.write_text("[[0.5, 1], [0, 0.5]]")  # integers are numbers
    assert load_game(path).matrix.dtype == np.float64


def test_tolerance_of_the_sum_and_the_first_pair():
    p = np.array(GOOD)
    p[0, 1] += 5e-10
    check_matrix(p)
    p[0, 1] += 5e-9
    p[1, 2] += 0.5
    with pytest.raises(ValueError, match=r"m: P\[0\]\[1\] \+ P\[1\]\[0\]"):
        check_matrix(p, "m")


@pytest.mark.parametrize("shape", [(2, 3), (3,), (), (1, 2, 3), (2, 2, 2, 2)])
def test_array_that_is_not_square(shape):
    for function in (nash_policy, comal, inpo, ipo):
        with pytest.raises(ValueError, match="matrix( 0)?: .*must be square"):
            function(np.full(shape, 0.5))


def test_array_that_is_not_numbers():
    with pytest.raises(ValueError, match="matrix: not an n×n matrix of numbers"):
        nash_policy([["a", "b"], ["c", "d"]])
    with pytest.raises(ValueError, match="matrix: not an n×n matrix of numbers"):
        nash_policy([[0.5, 0.5], [0.5]])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([0.5, 0.5], "start: 2 entries, but the game has 3"),
        ([[0.2, 0.5, 0.3]], "start: shape"),
        ([-0.1, 0.6, 0.5], "start: entry 0 is -0.1"),
        ([0.5, float("nan"), 0.5], "start: entry 1 is nan"),
        ([0.5, float("inf"), 0.5], "start: entry 1 is inf"),
        ([0.2, 0.2, 0.2], "start: the entries sum to 0.6"),
        (["a", "b", "c"], "start: not a list of 3"),
    ],
)
def test_bad_start(start, message):
    for solver in (comal, inpo, ipo):
        with pytest.raises(ValueError, match=message):
            solver(GOOD, start)


def test_start_is_uniform_by_default_and_normalised():
    assert check_start(None, 4).tolist() == [0.25] * 4
    assert check_start([0.5, 0.5 + 1e-10], 2).sum() == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 4.0}, "tau = 4 is greater than eta = 3.333"),
        ({"tau": 0.0}, "tau = 0: it must be positive"),
        ({"tau": -1.0}, "tau = -1: it must be positive"),
        ({"tau": float("nan")}, "tau = nan"),
        ({"eta": 0.0}, "eta = 0: it must be a positive"),
        ({"eta": float("inf")}, "eta = inf"),
        ({"eta": 0.05}, "tau = 0.1 is greater than eta = 0.05"),
        ({"outer": 0}, "outer = 0: it must be at least 1"),
        ({"inner": -3}, "inner = -3: it must be at least 1"),
        ({"outer": 2.0}, "outer = 2.0: it must be a whole number"),
        ({"inner": True}, "inner = True: it must be a whole number"),
    ],
)
def test_bad_options(options, message):
    for solver in (comal, inpo):
        with pytest.raises(ValueError, match=message):
            solver(GOOD, **options)


def test_bad_options_of_ipo():
    with pytest.raises(ValueError, match="eta = -1"):
        ipo(GOOD, eta=-1.0)
    with pytest.raises(ValueError, match="outer = 0"):
        ipo(GOOD, outer=0)


def test_tau_may_equal_eta():
    assert comal(GOOD, eta=1.0, tau=1.0, outer=2).log_policies.shape == (3, 3)


def test_gap_of_a_policy_with_the_wrong_length():
    with pytest.raises(ValueError, match="must have 3 entries"):
        duality_gap(GOOD, [0.5, 0.5])
