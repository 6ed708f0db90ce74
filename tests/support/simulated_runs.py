"""Runs of exact policies, and what the trainer would have measured of them.

A run is a sequence of policies of the exact game solvers, on one game or on a game per prompt. A
held-out prompt draws a response from every iterate, so that its win rates are 0/1 or the oracle's P
between two responses, and its KLs are log-ratios of what was drawn, as `evaluate` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from comal_fast.diagnostics import Evaluated, History, unbiased_variance
from comal_fast.game import kl_divergence, regularised_gap

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
                tau=run.tau or None,  # 0: iterative IPO, which regularises no game
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


def true_inner_gap(run: Run, iteration: int) -> float:
    """Return the exact duality gap that an iterate leaves in its regularised game."""
    log_policy, reference = (run.log_policies[t] for t in (iteration, reference_of(run, iteration)))
    gain = ((run.matrices - 0.5) @ np.exp(log_policy)[..., None])[..., 0]
    return float(regularised_gap(log_policy, reference, gain, run.tau).mean())


def largest_kl(run: Run) -> float:
    """Return the largest exact KL of an iterate to its reference, nats per token."""
    divergences = [
        kl_divergence(np.exp(run.log_policies[t]), run.log_policies[reference_of(run, t)]).mean()
        for t in range(1, len(run.log_policies))
    ]
    return float(max(divergences)) / TOKENS
