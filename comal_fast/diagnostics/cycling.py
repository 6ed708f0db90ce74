"""cycling: iterates that go round in a circle which does not shrink.

COMAL turns too on its way to Nash, but its circles shrink: each step is shorter than the one a turn
before, and the first circle is the widest. Without a reference that holds it back, or with steps
that are too long, the policy spirals outwards instead.

Two things tell. The distances between the probe's log-probs have no sampling error, and they fix
the iterates as points up to a rotation (classical scaling). Where all prompts play one game, the
path lies nearly in a plane. Where each has its own, win rates tell: steps that go in a circle win
one by one and not in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics.evidence import Finding, bound_mean, bound_rate, level_of
from comal_fast.diagnostics.history import Array, History

FULL_TURN = 0.9  # of 360°: 18 steps have 17 changes of direction
LEAST_STEPS = 6  # of a turn: fewer are a zigzag
ONE_WAY = 0.95  # share of all turning that goes the same way round
CIRCULATION = 0.02  # growth of the circulation, in win rate, that healthy runs stay below
GAINED = 0.05  # win rate above ½ that a circle may leave as gain; those of the solvers leave less
WIDEST = 0.95  # width of the circle, as a share of the largest distance between two iterates


@dataclass(frozen=True)
class Turn:
    """The last turn of a path: its steps change their direction by `FULL_TURN`."""

    num_steps: int
    one_way: float
    """Net turning as a share of all turning: 1 where no step turns back."""
    growth: float
    """Length of the second half of its steps over that of the first half."""


def cycling(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that the policy goes round in circles that do not shrink, by its path or its win rates.

    By its path: the last turn is as wide as any part of the path; the second half of its steps is
    as long as the first, or longer; it ends near its beginning, within `cycling_return` of its
    width; and the iterate is not shown to win 55 % against the one where it began.

    By its win rates: what went in circles in the second half of the run is shown to exceed what did
    in the first half, at half the error of the run.
    """
    now, iterates = history.current, sorted(history.evaluated)
    if now is None or len(iterates) < LEAST_STEPS + 1:
        return None
    return _circle(history, iterates, limits) or _circulation(history, iterates)


def _circle(history: History, iterates: list[int], limits: DiagnosticsConfig) -> Finding | None:
    distances = _distance_matrix(history, iterates)
    turn = None if distances is None else last_turn(distances)
    if distances is None or turn is None:
        return None
    if turn.num_steps < LEAST_STEPS or turn.one_way < ONE_WAY or turn.growth < 1:
        return None
    circle = distances[-turn.num_steps - 1 :, -turn.num_steps - 1 :]
    width, back = float(circle.max()), float(circle[0, -1])
    if width < WIDEST * distances.max() or back > limits.cycling_return * width:
        return None
    begun = iterates[-turn.num_steps - 1]
    found = bound_rate(history.evaluated[history.iteration].wins[begun], 0.95)
    if found.low > 0.5 + GAINED:
        return None
    text = (
        f"since iterate {begun} it went round in a circle that does not shrink: the second half "
        f"of its way was {turn.growth:.2g} times as long as the first. It is back at "
        f"{back / width:.0%} of the circle's width, and its win rate over that iterate is "
        f"{found.mean:.1%} [{found.low:.1%}, {found.high:.1%}]"
    )
    evidence = {
        "near": begun,
        "via": iterates[int(circle[0].argmax()) - len(circle)],
        "distance": back,
        "distance_gone": width,
        "growth": turn.growth,
        "win_rate": found.mean,
        "interval": [found.low, found.high],
    }
    return Finding(text, evidence)


def _circulation(history: History, iterates: list[int]) -> Finding | None:
    half = (len(iterates) + 1) // 2
    first, second = (circulation(history, part) for part in (iterates[:half], iterates[-half:]))
    grown = bound_mean(second - first, level_of(history, num_tests=2))
    if not grown.low > CIRCULATION:
        return None
    text = (
        f"what its steps win one by one they do not win in all, and more and more of it goes in "
        f"circles: {100 * first.mean():.0f} points of win rate from iterate {iterates[0]} to "
        f"{iterates[half - 1]}, {100 * second.mean():.0f} from {iterates[-half]} to "
        f"{iterates[-1]}, the difference being {100 * grown.mean:.0f} "
        f"[{100 * grown.low:.0f}, {100 * grown.high:.0f}]"
    )
    evidence = {
        "circulation": [float(first.mean()), float(second.mean())],
        "halves": [[iterates[0], iterates[half - 1]], [iterates[-half], iterates[-1]]],
        "interval": [grown.low, grown.high],
    }
    return Finding(text, evidence)


def circulation(history: History, iterates: list[int]) -> Array:
    """Return (prompts,) how much of what the steps between iterates gain they do not gain in all.

    The sum of P(π_{k+1} ≻ π_k) − ½ over the steps, less P(π_last ≻ π_first) − ½. It is 0 where
    P − ½ is a difference of scores. Where three responses beat each other in a circle it is
    proportional to the area that the path encloses around the Nash policy; areas of prompts add up.
    """
    wins = history.evaluated
    steps = [wins[late].wins[early] - 0.5 for early, late in pairwise(iterates)]
    total: Array = np.sum(steps, axis=0) - (wins[iterates[-1]].wins[iterates[0]] - 0.5)
    return total


def last_turn(distances: Array) -> Turn | None:
    """Return the last turn of a path, or None where its steps turn by less than `FULL_TURN`.

    Args:
        distances: (T, T) distances between the points of the path.
    """
    steps = np.diff(plane_coordinates(distances), axis=0) @ np.array([1, 1j])
    turning = np.angle(steps[1:] * steps[:-1].conj())[::-1]  # the last one first
    done = np.abs(np.cumsum(turning)) >= 2 * np.pi * FULL_TURN
    if not done.any():
        return None
    turning = turning[: int(done.argmax()) + 1]
    num_steps = len(turning) + 1
    lengths, half = np.abs(steps[-num_steps:]), num_steps // 2
    first, second = float(lengths[:half].sum()), float(lengths[-half:].sum())
    one_way = float(np.abs(turning.sum()) / np.abs(turning).sum())
    return Turn(num_steps, one_way, second / max(first, 1e-30))


def plane_coordinates(distances: Array) -> Array:
    """Return (T, 2) points in the plane that keeps most of (T, T) distances: classical scaling."""
    centring = np.eye(len(distances)) - 1 / len(distances)
    values, vectors = np.linalg.eigh(-centring @ distances**2 @ centring / 2)
    points: Array = vectors[:, -2:] * np.sqrt(np.maximum(values[-2:], 0))
    return points


def _distance_matrix(history: History, iterates: list[int]) -> Array | None:
    """Return all distances between the iterates; None if one is missing, or they are not even."""
    if len(set(np.diff(iterates).tolist())) != 1:
        return None
    matrix = np.zeros((len(iterates), len(iterates)))
    for row, late in enumerate(iterates):
        for column, early in enumerate(iterates[:row]):
            distance = history.evaluated[late].distances.get(early)
            if distance is None:
                return None
            matrix[row, column] = matrix[column, row] = distance
    return matrix
