"""Kinds of runs, healthy and failing, and how often each diagnostic fires in them.

Games, starts and settings are drawn anew for every run. `KINDS` says what is asked of the rates:
in a healthy run a diagnostic may fire with a probability of 5 %, and the diagnostic that means a
failure has to find it.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics import CHECKS, RUN_ERROR, Finding
from comal_fast.game import (
    comal,
    duality_gap,
    inpo,
    ipo,
    kl_divergence,
    nash_policy,
    paper_game,
)
from comal_fast.game.families import blotto_game, bradley_terry_game, cyclic_game, random_game
from simulated_runs import (
    ITERATIONS,
    Array,
    Generator,
    Run,
    largest_kl,
    simulate,
    true_inner_gap,
)

CHECKED = [name for name in CHECKS if name != "divergence"]  # which tests no hypothesis
MANY = 256  # prompts, from which a failure has to be found


@dataclass(frozen=True)
class Kind:
    """Runs of one kind, and what is asked of the diagnostics in them."""

    make: Callable[[Generator], Run]
    finds: tuple[str, ...] = ()
    """Diagnostics that mean its failure: they have to find 80 % of the runs at 256 prompts."""
    may_fire: tuple[str, ...] = ()
    """Other diagnostics that are right to fire."""
    kl_bound: float = 1.0
    """reference_drift's bound, as a share of the run's largest KL; at 1 it should never fire."""


def cyclic(rng: Generator) -> tuple[Array, Array]:
    """Return a cyclic game of 3 to 5 responses, at times the paper's, and a start."""
    if rng.random() < 0.3:
        matrix = paper_game().matrix
    else:
        matrix = cyclic_game(int(rng.integers(3, 6)), int(rng.integers(1 << 30))).matrix
    size = len(matrix)
    return matrix, 0.9 * rng.dirichlet(np.full(size, 3.0)) + 0.1 / size


def equal_policies(rng: Generator) -> Run:
    """Return a run that stays at the Nash policy of a random game: all its iterates are equal."""
    matrix = random_game(int(rng.integers(3, 7)), int(rng.integers(1 << 30))).matrix
    policy = 0.999 * nash_policy(matrix) + 0.001 / len(matrix)
    return _constant(matrix, np.log(policy))


def equal_prompts(rng: Generator) -> Run:
    """Return equal policies, with 16 games for the prompts, each at its Nash policy."""
    size = int(rng.integers(3, 7))
    games = [random_game(size, int(rng.integers(1 << 30))).matrix for _ in range(16)]
    policies = [0.999 * nash_policy(game) + 0.001 / size for game in games]
    return Run(np.stack(games), np.repeat(np.log(policies)[None], ITERATIONS + 1, axis=0))


def jitter(rng: Generator) -> Run:
    """Return policies that noise alone moves, on 256 games of rock, paper and scissors.

    They leave the Nash policy, but no preference on the whole leads them anywhere.
    """
    turned = rng.uniform(-0.4, 0.4, 256)[:, None, None]
    circle = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    walk = rng.normal(size=(ITERATIONS + 1, 256, 3)).cumsum(axis=0) * rng.choice([0.01, 0.03, 0.1])
    return Run(0.5 + turned * circle, _log_softmax(walk))


def healthy_steps(rng: Generator) -> Run:
    """Return COMAL as the trainer runs it, an iterate per step of the inner solver.

    Every step comes nearer to the Nash policy of the regularised game that it solves, and every
    reference nearer to that of the game itself (both in KL), as the theory has it.
    """
    while True:
        matrix, start = cyclic(rng)
        interval = int(rng.choice([2, 3, 6, 9, 12]))
        eta = float(rng.choice([0.1, 0.2, 0.3, 0.4, 0.8]))
        tau = eta * float(rng.choice([0.1, 0.2, 1 / 3, 0.5]))
        run = Run(matrix[None], trainer_steps(matrix, start, eta, tau, interval), interval, tau)
        if is_healthy(run):
            return run


def healthy_solves(rng: Generator) -> Run:
    """Return COMAL that solves every inner game to the theory's budget and moves the reference."""
    matrix, start = cyclic(rng)
    return _solved(matrix[None], start[None], float(rng.choice([0.05, 0.1, 0.3])))


def healthy_prompts(rng: Generator) -> Run:
    """Return the same on 16 cyclic games of one size."""
    size = int(rng.integers(3, 6))
    matrices = np.stack([cyclic_game(size, int(rng.integers(1 << 30))).matrix for _ in range(16)])
    starts = 0.9 * rng.dirichlet(np.full(size, 3.0), 16) + 0.1 / size
    return _solved(matrices, starts, float(rng.choice([0.05, 0.1, 0.3])))


def other_solves(rng: Generator) -> Run:
    """Return the same on a game of random preferences or a Blotto-like one."""
    make = random_game if rng.random() < 0.5 else blotto_game
    matrix = make(int(rng.integers(3, 9)), int(rng.integers(1 << 30))).matrix
    start = 0.9 * rng.dirichlet(np.full(len(matrix), 3.0)) + 0.1 / len(matrix)
    return _solved(matrix[None], start[None], float(rng.choice([0.05, 0.1, 0.3])))


def _solved(matrices: Array, starts: Array, tau: float) -> Run:
    eta = tau + 0.04 / tau  # the mirror step is stable on these games
    found = comal(matrices, starts, eta=eta, tau=tau, outer=ITERATIONS, inner=3000,
                  adaptive=True, c1=0.1)  # fmt: skip
    return Run(matrices, found.log_policies, 1, tau)


def transitive(rng: Generator) -> Run:
    """Return COMAL's steps on Bradley–Terry games, whose best response is the Nash policy."""
    matrix = bradley_terry_game(int(rng.integers(3, 7)), int(rng.integers(1 << 30))).matrix
    start, interval = rng.dirichlet(np.full(len(matrix), 3.0)), int(rng.choice([2, 3, 6, 12]))
    start = 0.9 * start + 0.1 / len(matrix)
    eta = float(rng.choice([0.2, 0.4, 0.8]))
    return Run(
        matrix[None], trainer_steps(matrix, start, eta, eta / 3, interval), interval, eta / 3
    )


def drifting(rng: Generator) -> Run:
    """Return steps on Bradley–Terry games that end far from a reference that never moves."""
    matrix = bradley_terry_game(int(rng.integers(3, 7)), int(rng.integers(1 << 30))).matrix
    start, tau = np.full(len(matrix), 1 / len(matrix)), 0.02
    return Run(matrix[None], trainer_steps(matrix, start, 0.2, tau, ITERATIONS), ITERATIONS, tau)


def arrived(rng: Generator) -> Run:
    """Return COMAL's steps from the Nash policy of a cyclic game, on which all iterates stay."""
    matrix, _ = cyclic(rng)
    return _constant(matrix, np.log(nash_policy(matrix) * 0.9999 + 0.0001 / len(matrix)))


def arrived_inside(rng: Generator) -> Run:
    """Return steps that end at a regularised game's Nash policy, far from that of the game."""
    matrix, start = cyclic(rng)
    found = inpo(matrix, start, eta=8.0, tau=0.3, outer=40, inner=100).log_policies[-1]
    log_policies = np.repeat(found[None], ITERATIONS + 1, axis=0)
    log_policies[0] = np.log(start)
    return Run(matrix[None], log_policies[:, None], ITERATIONS, 0.3)


def outward_spiral(rng: Generator) -> Run:
    """Return iterative IPO that goes round at least once and doubles its KL to Nash or more."""
    while True:
        matrix, start = cyclic(rng)
        eta = 1 / float(rng.choice([1.0, 1.5, 2.0, 3.0, 4.0, 6.0]))
        found = ipo(matrix, start, eta=eta, outer=ITERATIONS).log_policies
        if _spirals(matrix, found):
            return Run(matrix[None], found[:, None], 1, 0.0)


def other_spiral(rng: Generator) -> Run:
    """Return an outward spiral on a game of random preferences, of 3 to 6 responses."""
    while True:
        matrix = random_game(int(rng.integers(3, 7)), int(rng.integers(1 << 30))).matrix
        start = 0.9 * rng.dirichlet(np.full(len(matrix), 3.0)) + 0.1 / len(matrix)
        eta = 1 / float(rng.choice([1.0, 1.5, 2.0, 3.0, 4.0, 6.0]))
        found = ipo(matrix, start, eta=eta, outer=ITERATIONS).log_policies
        if _spirals(matrix, found):
            return Run(matrix[None], found[:, None], 1, 0.0)


def spiral_prompts(rng: Generator) -> Run:
    """Return outward spirals on 16 cyclic games of one size, all with the same step."""
    size, eta = int(rng.choice([3, 5])), 1 / float(rng.choice([3.0, 4.0, 6.0]))
    matrices: list[Array] = []
    paths: list[Array] = []
    while len(paths) < 16:
        matrix = cyclic_game(size, int(rng.integers(1 << 30))).matrix
        start = 0.9 * rng.dirichlet(np.full(size, 3.0)) + 0.1 / size
        found = ipo(matrix, start, eta=eta, outer=ITERATIONS).log_policies
        if _spirals(matrix, found):
            matrices.append(matrix)
            paths.append(found)
    return Run(np.stack(matrices), np.stack(paths, axis=1), 1, 0.0)


def noisy_spiral(rng: Generator) -> Run:
    """Return an outward spiral whose iterates are off by a tenth of a step, at random."""
    run = outward_spiral(rng)
    step = np.sqrt(np.mean(np.diff(run.log_policies, axis=0) ** 2))
    noise = rng.normal(size=run.log_policies.shape) * step * 0.1
    return replace(run, log_policies=_log_softmax(run.log_policies + noise))


def stuck(rng: Generator) -> Run:
    """Return COMAL whose steps are a thousandth of what they should be, away from Nash."""
    while True:
        matrix, start = cyclic(rng)
        if duality_gap(matrix, start) > 0.1:
            break
    policies = trainer_steps(matrix, start, 400.0, 1e-3, 12)
    return Run(matrix[None], policies, 12, 1e-3)


def worse_steps(rng: Generator) -> Run:
    """Return steps against the judge: iterative IPO on the preferences turned round."""
    matrix, start = cyclic(rng)
    found = ipo(1 - matrix, start, eta=0.5, outer=ITERATIONS).log_policies
    return Run(matrix[None], found[:, None], 1, 0.0)


def worse_rewards(rng: Generator) -> Run:
    """Return steps against the judge on Bradley–Terry games: the policy gets worse and worse."""
    matrix = bradley_terry_game(int(rng.integers(3, 7)), int(rng.integers(1 << 30))).matrix
    found = ipo(1 - matrix, None, eta=2.0, outer=ITERATIONS).log_policies
    return Run(matrix[None], found[:, None], 1, 0.0)


def trainer_steps(matrix: Array, start: Array, eta: float, tau: float, interval: int) -> Array:
    """Return (19, 1, n): log π after every prox step, the reference moving every so many."""
    rows = [np.log(start)]
    outer = -(-ITERATIONS // interval)
    comal(matrix, start, eta=eta, tau=tau, outer=outer, inner=interval, on_step=rows.append)
    return np.array(rows[: ITERATIONS + 1])[:, None]


def is_healthy(run: Run) -> bool:
    """Return whether KL to the inner games' Nash policies, and of references to Nash, falls."""
    matrix, log_policies = run.matrices[0], run.log_policies[:, 0]
    away = kl_divergence(nash_policy(matrix), log_policies)
    if not _falls(away[:: run.interval]) or away[-1] > away[0]:
        return False
    for begin in range(0, ITERATIONS, run.interval):
        start, eta = np.exp(log_policies[begin]), max(20 * run.tau, 8.0)
        goal = inpo(matrix, start, eta=eta, tau=run.tau, outer=1, inner=4000).policies[-1]
        if not _falls(kl_divergence(goal, log_policies[begin : begin + run.interval + 1])):
            return False
    return True


def _spirals(matrix: Array, log_policies: Array) -> bool:
    away = kl_divergence(nash_policy(matrix), log_policies)
    return bool(away[-1] > 2 * away[0] and abs(winding(matrix, log_policies)) >= 1)


def winding(matrix: Array, log_policies: Array) -> float:
    """Return how many turns policies (T, n) make around Nash, in the plane of their win rates."""
    policies = np.exp(log_policies)
    margins = policies @ (matrix - 0.5) @ policies.T
    _, vectors = np.linalg.eigh(1j * margins)  # the first plane of the antisymmetric matrix
    angle = np.unwrap(np.angle(vectors[:, -1]))
    return float(angle[-1] - angle[0]) / (2 * np.pi)


def _constant(matrix: Array, log_policy: Array) -> Run:
    return Run(matrix[None], np.repeat(log_policy[None, None], ITERATIONS + 1, axis=0))


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _falls(values: Array) -> bool:
    return bool((values[1:] <= values[:-1] * (1 + 1e-9) + 1e-9).all())


OTHERS = tuple(CHECKED)
KINDS: dict[str, Kind] = {
    "equal policies, at Nash": Kind(equal_policies),
    "equal policies, 16 games, at Nash": Kind(equal_prompts),
    "equal policies that noise moves": Kind(jitter),
    "healthy COMAL, step by step": Kind(healthy_steps),
    "healthy COMAL, solve by solve": Kind(healthy_solves),
    "healthy COMAL, 16 games": Kind(healthy_prompts),
    "healthy COMAL, random and Blotto games": Kind(other_solves),
    "healthy, transitive game": Kind(transitive),
    "arrived at Nash": Kind(arrived),
    "arrived at the regularised Nash": Kind(arrived_inside),
    "outward spiral": Kind(outward_spiral, ("cycling",), OTHERS),
    "outward spiral with noise": Kind(noisy_spiral, ("cycling",), OTHERS),
    "outward spiral, random game": Kind(other_spiral, ("cycling",), OTHERS),
    "outward spiral, 16 games": Kind(spiral_prompts, ("cycling",), OTHERS),
    "stuck": Kind(stuck, ("slow_convergence",)),
    "against the judge, cyclic game": Kind(worse_steps, ("degradation",), OTHERS),
    "against the judge, transitive game": Kind(worse_rewards, ("degradation",), OTHERS),
    "KL to the reference at twice its bound": Kind(drifting, ("reference_drift",), (), 0.5),
}


@dataclass(frozen=True)
class Rates:
    """In how many runs of a kind each diagnostic fired at least once.

    A finding of `inner_accuracy` counts where the exact gap is within its budget, so that it is
    false.
    """

    kind: str
    prompts: int
    runs: int = 0
    fired: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Rates) -> Rates:
        """Return the rates of both together."""
        return replace(self, runs=self.runs + other.runs, fired=self.fired + other.fired)

    def share(self, name: str) -> float:
        """Return the share of runs in which a diagnostic fired."""
        return self.fired[name] / self.runs

    def misses(self, errors: float) -> list[str]:
        """Return the diagnostics whose share is out of bounds by more than so many errors."""
        kind, found = KINDS[self.kind], []
        for name in CHECKED:
            if name in kind.finds:
                wrong = self.prompts >= MANY and self.share(name) < 0.8 - errors * self._error(0.8)
            else:
                most = RUN_ERROR + errors * self._error(RUN_ERROR)
                wrong = name not in kind.may_fire and self.share(name) > most
            found += [name] if wrong else []
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the rates as plain containers."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "prompts": self.prompts,
            "finds": list(kind.finds),
            "may_fire": list(kind.may_fire),
            "fired": {name: self.share(name) for name in CHECKED},
        }

    def _error(self, share: float) -> float:
        return math.sqrt(share * (1 - share) / self.runs)


def measure_rates(kind: str, prompts: int, runs: int, seed: int) -> Rates:
    """Simulate runs of a kind and count the diagnostics that fire in each."""
    rng = np.random.default_rng([seed, prompts, zlib.crc32(kind.encode())])
    fired: Counter[str] = Counter()
    for _ in range(runs):
        run = KINDS[kind].make(rng)
        fired.update(_fired(run, prompts, KINDS[kind].kl_bound, rng))
    return Rates(kind, prompts, runs, fired)


def _fired(run: Run, prompts: int, kl_bound: float, rng: Generator) -> set[str]:
    limits = DiagnosticsConfig(max_kl_to_reference=max(kl_bound * largest_kl(run), 1e-9))
    fired: set[str] = set()
    for history in simulate(run, prompts, rng):
        for name in CHECKED:
            finding = CHECKS[name](history, limits) if name not in fired else None
            if finding and not _is_right(run, history.iteration, name, finding):
                fired.add(name)
    return fired


def _is_right(run: Run, iteration: int, name: str, finding: Finding) -> bool:
    """Return whether the exact policies bear a finding out, where they can tell."""
    return name == "inner_accuracy" and true_inner_gap(run, iteration) > finding.evidence["budget"]
