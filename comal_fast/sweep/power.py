"""How many prompts and seeds would show a difference between two settings of a given size.

From what the cells of a finished sweep measured. d is the difference of two settings' win rates
against the initial policy on one held-out prompt; every seed holds out prompts of its own. With P
prompts and R seeds, samples a prompt as in the sweep,

    SE² = (σ_seed² + σ_prompt²/P)/R,

and a two-sided test at 5 % finds δ with a given power where δ ≥ (z_.975 + z_power) SE.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from rich.table import Table
from scipy.stats import norm

from comal_fast.errors import InputError
from comal_fast.statistics import Array
from comal_fast.sweep.collect import Sweep
from comal_fast.sweep.results import Result

LEVEL, POWER = 0.05, 0.8
DELTAS = (0.01, 0.02, 0.03, 0.05)
SEEDS = (1, 3, 5, 10)


@dataclass(frozen=True)
class Variances:
    """Of d: between prompts, drawing responses included; and of its mean between seeds.

    seed None: no two seeds of a pair of settings. pairs: of settings, whose variances these are the
    means of. samples: a prompt's, of the policy and of its opponent alike.
    """

    prompt: float
    seed: float | None
    pairs: int
    samples: int

    def prompts_needed(self, delta: float, seeds: int) -> float:
        """Held-out prompts of each seed that show `delta`; inf where seeds alone hide it."""
        quantiles = norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)
        room = seeds * (delta / quantiles) ** 2 - (self.seed or 0.0)
        return math.inf if room <= 0 else math.ceil(self.prompt / room * (1 - 1e-12))


def variances(results: list[Result]) -> Variances:
    """From cells that differ in more than their seed. InputError where there are no two."""
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        settings = {k: v for k, v in result.cell.settings.items() if k != "seed"}
        cells = groups.setdefault(json.dumps(settings, sort_keys=True), {})
        cells[result.cell.config.seed] = result
    prompt, seed, samples = [], [], 0
    for one, other in combinations(groups.values(), 2):
        common = [s for s in one if s in other and one[s].prompts == other[s].prompts]
        apart: list[Array] = [one[s].wins - other[s].wins for s in common]
        if not apart:
            continue
        within = [float(d.var(ddof=1)) for d in apart]
        prompt.append(np.mean(within))
        samples = one[common[0]].cell.config.evaluation.num_generations
        if len(apart) > 1:
            drawn = np.mean([v / len(d) for v, d in zip(within, apart, strict=True)])
            seed.append(np.var([d.mean() for d in apart], ddof=1) - drawn)
    if not prompt:
        raise InputError(
            "--power: no two settings finished on the same held-out prompts; the rest of the sweep "
            "is written"
        )
    between = max(0.0, float(np.mean(seed))) if seed else None
    return Variances(float(np.mean(prompt)), between, len(prompt), samples)


def power_table(found: Variances) -> Table:
    """Prompts a seed that show a difference with 80 % power, by seeds and by the difference."""
    table = Table(box=None, pad_edge=False)
    table.add_column("seeds", justify="right")
    for delta in DELTAS:
        table.add_column(f"{100 * delta:g} points", justify="right")
    for seeds in SEEDS if found.seed is not None else SEEDS[:1]:
        needed = [found.prompts_needed(delta, seeds) for delta in DELTAS]
        table.add_row(str(seeds), *("–" if math.isinf(n) else f"{n:,.0f}" for n in needed))
    return table


def explanation(sweep: Sweep, found: Variances) -> str:
    """What the table's numbers are, and what the sweep could not measure."""
    prompts = len(sweep.results[0].wins)
    said = (
        f"Held-out prompts of each seed that show a difference between two settings' win rates "
        f"with {POWER:.0%} power at {LEVEL:.0%}, {found.samples} sample(s) a prompt; here there "
        f"are "
        f"{prompts}. Standard deviations, {found.pairs} pair(s) of settings: "
        f"{math.sqrt(found.prompt):.3f} between prompts, "
    )
    if found.seed is None:
        return said + (
            "not measured between seeds: the numbers hold for these very runs, and say nothing of "
            "others; give the grid seed=0,1,2."
        )
    return said + (
        f"{math.sqrt(found.seed):.4f} of the mean between seeds. –: that many seeds hide it, "
        "whatever the number of prompts."
    )
