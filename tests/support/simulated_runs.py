"""Runs of exact policies, and what the trainer would have measured of them.

A run is a sequence of policies of the exact game solvers, on one game or on a game per prompt. A
held-out prompt draws a response from every iterate, so that its win rates are 0/1 or the oracle's P
between two responses, and its KLs are log-ratios of what was drawn, as `evaluate` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from comal_fast.diagnostics import Evaluated, History, unbiased_variance
from comal_fast.game import (
    comal,
    duality_gap,
    inpo,
    ipo,
    kl_divergence,
    nash_policy,
    paper_game,
)
from comal_fast.game.families import bradley_terry_game, cyclic_game, random_game

Array = NDArray[np.float64]
Generator = np.random.Generator

ITERATIONS = 18
TOKENS = 16.0  # of a response
PROBE = 16
SAMPLES = 4  # judged responses per training prompt
TRAINING_PROMPTS = 256


@dataclass(frozen=True)
class Run:
    """Exact policies π_0 … π_18 and the settings that they were made with."""

    matrices: Array
    """(G, n, n): prompt p plays game p mod G."""
    log_policies: Array
    """(T + 1, G, n)."""
    interval: int = 12
    tau: float = 0.0


def simulate(run: Run, num_prompts: int, rng: Generator) -> Iterator[History]:
    """Yield the history after every iteration, as `phases/diagnose.py` hands it to the checks."""
    policies = np.exp(run.log_policies)
    length, num_games, _ = policies.shape
    games = np.arange(num_prompts) % num_games
    drawn = np.array([draw(policies[t, games], rng) for t in range(length)])
    logs = run.log_policies[:, games]
    probe_games = np.arange(PROBE) % num_games
    probed = run.log_policies[:, probe_games, draw(policies[0, probe_games], rng)]
    evaluated: dict[int, Evaluated] = {}
    judged: dict[int, Array] = {}
    for t in range(length):
        reference = reference_of(run, t)
        logp = np.take_along_axis(logs, drawn[t][None, :, None], axis=2)[..., 0]
        evaluated[t] = Evaluated(
            iterate=t,
            reference=reference,
            wins={s: run.matrices[games, drawn[t], drawn[s]] for s in range(t)},
            kl_to_initial=logp[t] - logp[0],
            kl_to_reference=logp[t] - logp[reference],
            length=TOKENS,
            distances={s: float(np.sqrt(np.mean((probed[t] - probed[s]) ** 2))) for s in range(t)},
        )
        if t:
            judged[t] = judged_variances(run, t, rng)
            yield History(
                iteration=t,
                steps=[],
                trained_length=TOKENS,
                evaluated=dict(evaluated),
                ref_update_interval=run.interval,
                tau=run.tau,
                pull=run.tau,
                num_evaluations=length - 1,
                win_rate_variances=dict(judged),
            )


def judged_variances(run: Run, iteration: int, rng: Generator) -> Array:
    """Return `unbiased_variance` of the samples that `iteration` trains on, by prompt."""
    games = np.arange(TRAINING_PROMPTS) % len(run.matrices)
    last, reference = (
        run.log_policies[t, games] for t in (iteration - 1, reference_of(run, iteration))
    )
    samples = np.repeat(np.exp(last)[:, None], SAMPLES, axis=1)
    drawn = draw(samples, rng)  # (prompts, K)
    ratio = np.take_along_axis(last - reference, drawn, axis=1)
    margins = run.matrices[games[:, None, None], drawn[:, :, None], drawn[:, None]] - 0.5
    return unbiased_variance(margins - run.tau * (ratio[:, :, None] - ratio[:, None]))


def reference_of(run: Run, iteration: int) -> int:
    """Return the iterate that is the reference while `iteration` trains."""
    return max(0, iteration - 1) // run.interval * run.interval


def draw(policies: Array, rng: Generator) -> NDArray[np.int64]:
    """Return a response of each policy (..., n)."""
    below = policies.cumsum(axis=-1) < rng.random((*policies.shape[:-1], 1))
    return np.minimum(below.sum(axis=-1), policies.shape[-1] - 1)


# the kinds of runs


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
        away = kl_divergence(nash_policy(matrix), found)
        if away[-1] > 2 * away[0] and abs(winding(matrix, found)) >= 1:
            return Run(matrix[None], found[:, None], 1, 0.0)


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


KINDS: dict[str, Callable[[Generator], Run]] = {
    "equal policies": equal_policies,
    "equal policies, 16 games": equal_prompts,
    "equal policies, moved by noise": jitter,
    "healthy COMAL, step by step": healthy_steps,
    "healthy COMAL, solve by solve": healthy_solves,
    "healthy COMAL, 16 games": healthy_prompts,
    "healthy, transitive game": transitive,
    "arrived at Nash": arrived,
    "arrived at the regularised Nash": arrived_inside,
    "outward spiral": outward_spiral,
    "outward spiral with noise": noisy_spiral,
    "stuck": stuck,
    "steps against the judge, cyclic": worse_steps,
    "steps against the judge, transitive": worse_rewards,
}


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
