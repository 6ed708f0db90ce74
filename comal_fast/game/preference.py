"""Preference matrices P[i, j] = P(i beats j): loading, validation, and the game of the paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from comal_fast.errors import InputError

Array = NDArray[np.float64]

TOLERANCE = 1e-9  # on P + Pᵀ = 1, on the diagonal and on the sum of a start policy


@dataclass(frozen=True)
class Game:
    """A validated game: `matrix` (n, n) float64 with P + Pᵀ = 1, `names` one per response."""

    matrix: Array
    names: tuple[str, ...]


PAPER_START: tuple[float, ...] = (0.2, 0.5, 0.3)


def paper_game() -> Game:
    """The cyclic 3×3 game of COMAL (arXiv 2410.23223v2); its Nash policy is (4/11, 3/11, 4/11)."""
    matrix = np.array([[0.5, 0.1, 0.8], [0.9, 0.5, 0.1], [0.2, 0.9, 0.5]])
    return Game(matrix, ("a", "b", "c"))


def default_names(n: int) -> tuple[str, ...]:
    """n names: a, b, c, … while the alphabet lasts, otherwise y0, y1, …"""
    return tuple(chr(ord("a") + i) if n <= 26 else f"y{i}" for i in range(n))


def advantage(matrix: Array) -> Array:
    """½(P − Pᵀ), (..., n, n) float64: P − ½, exactly antisymmetric: rounding makes no bias."""
    return (matrix - np.swapaxes(matrix, -1, -2)) / 2


def check_matrix(matrix: ArrayLike, source: str = "matrix") -> Array:
    """Return `matrix` as a float64 (n, n) copy; InputError naming `source` and the first bad entry.

    Needs n ≥ 2, entries in [0, 1], a diagonal of 0.5, and P[i][j] + P[j][i] = 1 (within 1e-9).
    """
    try:
        p = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{source}: not an n×n matrix of numbers ({error}); give a list of n lists of n numbers"
        ) from None
    if p.size and (p.ndim != 2 or p.shape[0] != p.shape[1]):
        shape = "×".join(map(str, p.shape)) or "a single number"
        raise InputError(f"{source}: the matrix must be square, n×n, but it is {shape}")
    if len(p) < 2:
        raise InputError(f"{source}: a game needs at least 2 responses, but it has {len(p)}")
    if (where := _first(np.isnan(p))) is not None:
        i, j = where
        raise InputError(f"{source}: P[{i}][{j}] is NaN; it must be a probability in [0, 1]")
    if (where := _first((p < 0) | (p > 1))) is not None:
        i, j = where
        raise InputError(f"{source}: P[{i}][{j}] = {p[i, j]:.12g} is outside [0, 1]")
    if (where := _first(np.diag(np.abs(p.diagonal() - 0.5) > TOLERANCE))) is not None:
        i, _ = where
        raise InputError(
            f"{source}: P[{i}][{i}] = {p[i, i]:.12g}; the diagonal must be 0.5, "
            "a response against itself"
        )
    if (where := _first(np.abs(p + p.T - 1) > TOLERANCE)) is not None:
        i, j = where
        raise InputError(
            f"{source}: P[{i}][{j}] + P[{j}][{i}] = {p[i, j] + p[j, i]:.12g}; it must be 1 "
            f"(within {TOLERANCE:g}), since P[i][j] is the probability that i beats j"
        )
    return p


def check_start(start: ArrayLike | None, n: int, source: str = "start") -> Array:
    """Return the start policy (n,) float64, normalised; None is uniform. Zeros are allowed.

    InputError naming `source` when the length is not n, an entry is negative or not finite, or the
    sum is not 1 (within 1e-9).
    """
    if start is None:
        return np.full(n, 1 / n)
    try:
        policy = np.array(start, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: not a list of {n} probabilities ({error})") from None
    if policy.shape != (n,):
        found = f"{policy.size} entries" if policy.ndim == 1 else f"shape {policy.shape}"
        raise InputError(f"{source}: {found}, but the game has {n} responses; give {n} entries")
    bad = ~np.isfinite(policy) | (policy < 0)
    if bad.any():
        i = int(bad.argmax())
        raise InputError(
            f"{source}: entry {i} is {policy[i]:.12g}; every entry must be a probability, ≥ 0"
        )
    total = float(policy.sum())
    if abs(total - 1) > TOLERANCE:
        raise InputError(f"{source}: the entries sum to {total:.12g}; they must sum to 1")
    return policy / total


def load_game(path: str | Path) -> Game:
    """Read a game from JSON: a list of lists, or {"matrix": [[…]], "names": […]} (names optional).

    InputError with one line that names the file and the place for anything that is not a game.
    """
    content = _read_json(path)
    names: object = None
    if isinstance(content, dict):
        unknown = sorted(set(content) - {"matrix", "names"})
        if unknown:
            raise InputError(
                f"{path}: unknown key {unknown[0]!r}; the keys are 'matrix' and 'names'"
            )
        if "matrix" not in content:
            raise InputError(f"{path}: the key 'matrix' is missing")
        names, content = content.get("names"), content["matrix"]
    return parse_game(content, names, str(path))


def parse_game(content: object, names: object, source: str) -> Game:
    """The game of a parsed JSON matrix and of its names, or None. InputError naming `source`."""
    matrix = check_matrix(_check_rows(content, source), source)
    return Game(matrix, _check_names(names, len(matrix), source))


def _read_json(path: str | Path) -> object:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a JSON file with the matrix") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8; give a JSON file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(f"{str(path)!r}: not a file name ({error})") from None
    try:
        content: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except (RecursionError, ValueError):  # nested too deep; an integer with too many digits
        raise InputError(f"{path}: JSON that is no matrix; give a list of lists") from None
    return content


def _check_rows(content: object, source: str) -> list[list[float]]:
    if not isinstance(content, list):
        raise InputError(
            f"{source}: the matrix must be a list of lists, not {type(content).__name__}"
        )
    for i, row in enumerate(content):
        if not isinstance(row, list):
            raise InputError(f"{source}: row {i} must be a list, not {type(row).__name__}")
        if len(row) != len(content):
            raise InputError(
                f"{source}: the matrix must be square, but row {i} has {len(row)} entries "
                f"and there are {len(content)} rows"
            )
        for j, value in enumerate(row):
            if isinstance(value, bool) or not isinstance(value, int | float):
                shown = json.dumps(value)
                shown = shown if len(shown) <= 40 else shown[:37] + "…"
                raise InputError(f"{source}: P[{i}][{j}] = {shown} is not a number")
            # before the conversion to float, which a huge integer would overflow
            if value == value and not 0 <= value <= 1:  # NaN is left to check_matrix
                shown = str(value) if isinstance(value, float) else "an integer"
                raise InputError(f"{source}: P[{i}][{j}] = {shown} is outside [0, 1]")
    return content


def _check_names(names: object, n: int, source: str) -> tuple[str, ...]:
    if names is None:
        return default_names(n)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{source}: 'names' must be a list of {n} strings")
    if len(names) != n:
        raise InputError(f"{source}: 'names' has {len(names)} entries for {n} responses")
    repeated = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if repeated is not None:
        raise InputError(f"{source}: 'names' has {repeated!r} twice; names must differ")
    return tuple(names)


def _first(mask: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Row and column of the first True in reading order, or None."""
    if not mask.any():
        return None
    i, j = np.unravel_index(int(mask.argmax()), mask.shape)
    return int(i), int(j)
