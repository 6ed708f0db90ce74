"""How many prompts and seeds would show a difference between two settings of a given size.

From what the cells of a finished sweep measured. d is the difference of two settings' win rates
against the initial policy on one held-out prompt. With R seeds of P prompts each, the mean of d has
the variance

    σ_seed²/R + σ_prompt²/(R P) + what prompts that seeds share add (`statistics.seeds`),

and the test asks whether the interval that the sweep prints excludes 0. Its power is computed for
that very interval: the mean is normal, and the seeds' part of its variance is estimated with R − 1
degrees of freedom, so that power is an expectation over a χ² variable. Of prompts that no two seeds
share this is the power of Student's test (the noncentral t distribution).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from rich.table import Table
from scipy.optimize import brentq
from scipy.stats import chi2, norm

from comal_fast.errors import InputError
from comal_fast.statistics.seeds import half_width, variance_over_seeds
from comal_fast.sweep.collect import Sweep
from comal_fast.sweep.results import Result

LEVEL, POWER = 0.05, 0.8
DELTAS = (0.01, 0.02, 0.03, 0.05)
SEEDS = (1, 3, 5, 10)
MOST = 1e9  # prompts; a difference that takes more is hidden by the seeds
QUANTILES = (np.arange(2000) + 0.5) / 2000


@dataclass(frozen=True)
class Variances:
    """The variances of d, means over pairs of settings."""

    prompt: float
    """Between the prompts of one seed, drawing responses included."""
    seed: float | None
    """Between seeds, of the mean over prompts; None without two seeds of a pair of settings."""
    pairs: int
    """Number of pairs of settings."""
    samples: int
    """Responses a prompt, of the policy and of its opponent alike."""
    shared: float = 0.0
    """The covariance of two seeds' means times the number of prompts: 0 if they share none."""

    def power(self, delta: float, seeds: int, prompts: float) -> float:
        """Return the probability that a difference of `delta` is shown.

        Args:
            delta: Difference of win rates.
            seeds: Number of seeds. With one, the test is that of the prompts of these very runs.
            prompts: Held-out prompts of each seed.
        """
        own = max(self.prompt - self.shared, 0.0) / prompts
        if seeds == 1:
            part, degrees, shared = self.prompt / prompts, prompts - 1, 0.0
        else:
            part, degrees = ((self.seed or 0.0) + own) / seeds, seeds - 1
            shared = self.shared / prompts
        estimated = part * chi2.ppf(QUANTILES, degrees) / degrees
        half = half_width(estimated, degrees, shared, prompts, 1 - LEVEL)
        error = math.sqrt(part + shared)
        if error == 0:
            return 1.0
        shown = norm.sf((half - delta) / error) + norm.cdf((-half - delta) / error)
        return float(shown.mean())

    def prompts_needed(self, delta: float, seeds: int) -> float:
        """Return the held-out prompts of each seed that show `delta` with 80 % power.

        The result is infinite where the variance between seeds hides the difference.
        """

        def lack(log_prompts: float) -> float:
            return POWER - self.power(delta, seeds, math.exp(log_prompts))

        if lack(math.log(MOST)) > 0:
            return math.inf
        least = math.log(2)
        if lack(least) <= 0:
            return 2
        return math.ceil(math.exp(float(brentq(lack, least, math.log(MOST), xtol=1e-9))) - 1e-6)


def variances(results: list[Result]) -> Variances:
    """Return the variances of cells that differ in more than their seed.

    Raises:
        InputError: there are no two such cells on the same held-out prompts.
    """
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        settings = {k: v for k, v in result.cell.settings.items() if k != "seed"}
        cells = groups.setdefault(json.dumps(settings, sort_keys=True), {})
        cells[result.cell.config.seed] = result
    prompt, seed, shared, samples = [], [], [], 0
    for one, other in combinations(groups.values(), 2):
        common = [s for s in one if s in other and one[s].prompts == other[s].prompts]
        apart = [one[s].wins - other[s].wins for s in common]
        if not apart:
            continue
        within = float(np.mean([d.var(ddof=1) for d in apart]))
        prompt.append(within)
        samples = one[common[0]].cell.config.evaluation.num_generations
        if len(apart) > 1:
            runs = [
                dict(zip(one[s].held_out, d, strict=True))
                for s, d in zip(common, apart, strict=True)
            ]
            found, size = variance_over_seeds(runs), float(np.mean([len(d) for d in apart]))
            # the spread of the means holds what prompts add that no other seed has
            seed.append(len(apart) * found.seeds - within / size + found.shared)
            shared.append(min(found.shared * size, within))
    if not prompt:
        raise InputError(
            "--power: no two settings finished on the same held-out prompts; the rest of the sweep "
            "is written"
        )
    between = max(0.0, float(np.mean(seed))) if seed else None
    common_part = float(np.mean(shared)) if shared else 0.0
    return Variances(float(np.mean(prompt)), between, len(prompt), samples, common_part)


def power_table(found: Variances) -> Table:
    """Return a table of the prompts that show a difference, by its size and by seeds."""
    table = Table(box=None, pad_edge=False)
    table.add_column("seeds", justify="right")
    for delta in DELTAS:
        table.add_column(f"{100 * delta:g} points", justify="right")
    for seeds in SEEDS if found.seed is not None else SEEDS[:1]:
        needed = [found.prompts_needed(delta, seeds) for delta in DELTAS]
        table.add_row(str(seeds), *("–" if math.isinf(n) else f"{n:,.0f}" for n in needed))
    return table


def explanation(sweep: Sweep, found: Variances) -> str:
    """Return what the table's numbers are, and what the sweep could not measure."""
    prompts = len(sweep.results[0].wins)
    said = (
        f"Held-out prompts of each seed that show a difference between two settings' win rates "
        f"with {POWER:.0%} power by the interval that a sweep prints, {found.samples} sample(s) a "
        f"prompt; here there are {prompts}. Standard deviations, {found.pairs} pair(s) of "
        f"settings: {math.sqrt(found.prompt):.3f} between prompts, "
    )
    if found.seed is None:
        return said + (
            "not measured between seeds: the numbers hold for these very runs, and say nothing of "
            "others; give the grid seed=0,1,2."
        )
    said += (
        f"{math.sqrt(found.seed):.4f} of the mean between seeds. –: that many seeds hide it, "
        "whatever the number of prompts. One seed: the numbers hold for these very runs."
    )
    if found.shared:
        said += " Seeds are taken to share prompts as they do here."
    return said
