"""The sampled step on the paper's and on random games: what ends at Nash, and how noisy it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from comal_fast.game.families import random_game
from comal_fast.game.preference import PAPER_START, Array, paper_game
from comal_fast.game.report import versions
from comal_fast.game.sampled import ANCHORED, PROXES, SINGLE, find_limit
from comal_fast.game.sampled_noise import measure_noise
from comal_fast.game.sampled_step import Recipe

SIZES = (3, 6)
AT_NASH = 0.005  # a duality gap that counts as arrived
SELECTIONS = (
    ("all", "label"),
    ("best_worst", "label"),
    ("best_second", "label"),
    ("best_worst", "win_rate"),
    ("best_worst", "cross_fit"),
)
NOISE_DRAWS = 4000
# η, outer moves of the reference and iterations between them. ipo and dpo step from the reference
# (True), so that an iteration is a whole best response and the reference moves oftener
LOOPS = {True: (0.5, 250, 8), False: (1.0, 100, 30)}
TAU = 0.1


@dataclass(frozen=True)
class Row:
    """One recipe: its gaps on the paper's game and on every random game, and its noise there."""

    recipe: Recipe
    paper_gap: float
    paper_policy: list[float]
    paper_majority_gap: float
    gaps: list[float]
    majority_gaps: list[float]
    noise: float | None
    responses: float | None
    pairs: float | None


def recipes(samples: int, proxes: Sequence[str] = PROXES) -> list[Recipe]:
    """Return every prox with every selection and label; sampled labels have the mean of soft ones.

    sppo and dro train on every response alone, by soft win rates.
    """
    found: list[Recipe] = []
    for prox in proxes:
        if prox in SINGLE:
            zs = ("samples", "zero") if prox == "sppo" else ("samples",)
            found += [Recipe(prox, target="win_rate", samples=samples, log_z=z) for z in zs]
            continue
        for strategy, target in SELECTIONS:
            if prox == "dpo" and target != "label":
                continue
            own = "win_rate" if prox == "rebel" and target == "label" else target
            found += [
                Recipe(prox, strategy, labels, own, samples)
                for labels in ("soft", "sampled", "hard")
            ]
    return list(dict.fromkeys(found))


def random_games(count: int, seed: int) -> list[Array]:
    """Return `count` random preference matrices of 3 to 6 responses."""
    sizes = np.random.default_rng(seed).integers(SIZES[0], SIZES[1] + 1, count)
    return [random_game(int(n), seed + i).matrix for i, n in enumerate(sizes)]


def run_study(
    count: int,
    seed: int,
    chosen: Sequence[Recipe],
    advance: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Find the limit of every recipe on the paper's game and on `count` random games.

    `advance` is called after each recipe.
    """
    games = random_games(count, seed)
    starts = [np.full(len(matrix), 1 / len(matrix)) for matrix in games]
    paper, paper_start = paper_game().matrix, np.array(PAPER_START)
    known: dict[Recipe, tuple[Any, Any]] = {}
    rows = []
    for recipe in chosen:
        eta, outer, inner = LOOPS[recipe.prox in ANCHORED]
        options: dict[str, Any] = {"eta": eta, "tau": TAU, "outer": outer, "inner": inner}
        # the mean of a sampled label is the soft one, and so is its limit
        same = replace(recipe, labels="soft") if recipe.labels == "sampled" else recipe
        if same not in known:
            known[same] = (
                find_limit([paper], [paper_start], same, **options),
                find_limit(games, starts, same, **options),
            )
        one, many = known[same]
        noise = None
        if recipe.prox == "inpo":
            noise = measure_noise(paper, paper_start, recipe, NOISE_DRAWS, seed)
        rows.append(
            Row(
                recipe,
                float(one.gap[0]),
                one.policies[0].tolist(),
                float(one.majority_gap[0]),
                many.gap.tolist(),
                many.majority_gap.tolist(),
                None if noise is None else noise.relative,
                None if noise is None else noise.responses,
                None if noise is None else noise.pairs,
            )
        )
        advance()
    return rows


def study_json(rows: list[Row], seed: int) -> bytes:
    """Return the record of a study."""
    content = {
        "sampled_step": [asdict(row) for row in rows],
        "seed": seed,
        "tau": TAU,
        "eta_outer_inner": {
            "from the reference": LOOPS[True],
            "from the last iterate": LOOPS[False],
        },
        "at_nash": AT_NASH,
        "noise_draws": NOISE_DRAWS,
        "versions": versions(),
    }
    return (json.dumps(content) + "\n").encode()


def read_rows(content: dict[str, Any]) -> list[Row]:
    """Return the rows of a record that `study_json` wrote."""
    return [Row(**{**row, "recipe": Recipe(**row["recipe"])}) for row in content["sampled_step"]]


def study_table(rows: list[Row]) -> Table:
    """Return a table, a row per prox, selection, target and labels."""
    table = Table(box=None, pad_edge=False)
    for name in ("prox", "pairs", "target", "labels"):
        table.add_column(name, no_wrap=True)
    for name in ("paper", "median", "at Nash"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        r = row.recipe
        pairs = "every response" if r.prox in SINGLE else r.strategy
        labels = f"log Z {r.log_z}" if r.prox == "sppo" else r.labels
        table.add_row(r.prox, pairs, r.target, labels, *cell(row).split(", "))
    return table


def table_rows(rows: list[Row]) -> list[list[str]]:
    """Return the table's cells: paper's game, median of the random games, share at Nash."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        r = row.recipe
        if r.prox in SINGLE:
            what = (
                "every response",
                "win_rate",
                f"log Z {r.log_z}" if r.prox == "sppo" else "soft",
            )
        else:
            native = r.prox == "rebel" and r.target == "win_rate"
            target = "its own" if r.target == "label" or native else r.target
            what = (r.strategy, target, r.labels)
            if native and r.strategy == "best_worst":  # inpo and ipo have both targets
                groups.setdefault((r.strategy, "win_rate", r.labels), {})[r.prox] = row
        groups.setdefault(what, {})[r.prox] = row
    return [[*what, *(cell(found.get(prox)) for prox in PROXES)] for what, found in groups.items()]


def cell(row: Row | None) -> str:
    """Return the gap on the paper's game, the median of the others, and the share at Nash."""
    if row is None:
        return "–"
    share = np.mean(np.array(row.gaps) <= AT_NASH)
    return f"{row.paper_gap:.4f}, {np.median(row.gaps):.4f}, {share:.0%}"


def noise_rows(rows: list[Row]) -> list[list[str]]:
    """Return (pairs, target, labels, noise, responses, pairs, noise × responses) of inpo's rows."""
    return [
        [
            row.recipe.strategy,
            row.recipe.target,
            row.recipe.labels,
            f"{row.noise:.1f}",
            f"{row.responses:.2f}",
            f"{row.pairs:.2f}",
            f"{row.noise * row.responses:.1f}",
        ]
        for row in rows
        if row.noise is not None and row.responses is not None
    ]
