"""What `comal-fast game --samples K` does: the sampled step's limit on one game, or a study."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from comal_fast.game.monte_carlo import REPEATS, sample_limit
from comal_fast.game.nash import nash_policy
from comal_fast.game.preference import Array, Game
from comal_fast.game.report import policy_table, versions
from comal_fast.game.sampled import PROXES, find_limit
from comal_fast.game.sampled_step import Recipe, count_compositions
from comal_fast.game.sampled_study import (
    AT_NASH,
    noise_rows,
    recipes,
    run_study,
    study_json,
    study_table,
)
from comal_fast.store.files import write_all
from comal_fast.system.terminal import Bar

LARGEST_ENUMERATION = 30_000  # compositions; beyond, the expectation is taken over seeded draws


def describe(recipe: Recipe, method: str) -> str:
    """Return a recipe as text, such as: inpo, best_worst pairs, soft labels, 4 samples."""
    words = [recipe.prox, f"{recipe.strategy} pairs", f"{recipe.labels} labels"]
    words += [f"target {recipe.target}", f"{recipe.samples} samples", f"method {method}"]
    return ", ".join(words)


def solve_sampled(
    console: Console,
    game: Game,
    label: str,
    start: Array,
    recipe: Recipe,
    *,
    method: str,
    eta: float,
    tau: float,
    outer: int,
    inner: int,
    seed: int,
    json_file: str | None,
) -> None:
    """Print where the recipe ends on one game, and its gaps in P and in the majority's game."""
    nash = nash_policy(game.matrix)
    loops: dict[str, Any] = {
        "method": method,
        "eta": eta,
        "tau": tau,
        "outer": outer,
        "inner": inner,
    }
    exact = count_compositions(len(game.names), recipe.samples) <= LARGEST_ENUMERATION
    with Bar(console, "sampled step", outer * (1 if exact else REPEATS)) as advance:
        if exact:
            found = find_limit([game.matrix], [start], recipe, **loops, advance=advance)
            policy, errors = found.policies[0], None
            gaps = {"gap": float(found.gap[0]), "majority_gap": float(found.majority_gap[0])}
            moved = float(found.moved[0])
        else:
            estimate = sample_limit(game.matrix, start, recipe, **loops, seed=seed, advance=advance)
            policy, moved = estimate.policy, estimate.moved
            gaps = {"gap": estimate.gap, "majority_gap": estimate.majority_gap}
            errors = {"gap": estimate.gap_error, "majority_gap": estimate.majority_gap_error}
    content = {
        "recipe": recipe.__dict__,
        **loops,
        "names": list(game.names),
        "matrix": game.matrix.tolist(),
        "start": start.tolist(),
        "nash": nash.tolist(),
        "policy": policy.tolist(),
        **gaps,
        "standard_errors": errors,
        "moved": moved,
        "enumerated": exact,
        "seed": None if exact else seed,
        "versions": versions(),
    }
    if json_file is not None:
        write_all({json_file: (json.dumps(content) + "\n").encode()})
    console.print(Text(f"the sampled step on {label}: {describe(recipe, method)}\n"))
    console.print(policy_table(game.names, {"Nash": nash, "limit": policy}))
    said = {
        name: f"{value:.5f}" + (f" ± {errors[name]:.5f}" if errors else "")
        for name, value in gaps.items()
    }
    console.print(
        f"\nduality gap in P {said['gap']}, in the majority's game {said['majority_gap']}; the "
        f"last outer step moved {moved:.1e} (total variation)", highlight=False
    )  # fmt: skip
    if json_file is not None:
        console.print(Text(f"wrote {json_file}", style="dim"), soft_wrap=True)


def study_sampled(
    console: Console,
    count: int,
    seed: int,
    samples: int,
    prox: str | None,
    json_file: str | None,
    plot: str | None,
) -> None:
    """Print the limit of every prox, selection and label on the paper's game and random ones.

    prox: None for all of them.
    """
    chosen = recipes(samples, PROXES if prox is None else [prox])
    with Bar(console, "study", len(chosen)) as advance:
        rows = run_study(count, seed, chosen, advance)
    contents = {}
    if json_file is not None:
        contents[json_file] = study_json(rows, seed)
    if plot is not None:
        from comal_fast.game.plot import image_format, render
        from comal_fast.game.sampled_plot import draw_study

        title = f"{samples} samples a prompt, {count} random games"
        contents[plot] = render(draw_study(rows, title), image_format(plot))
    write_all(contents)
    console.print(
        f"Duality gap in P at the limit: the paper's game; median of {count} random games of 3 to "
        f"6 responses (seed {seed}); share of them at {AT_NASH:g} or less. {samples} samples a "
        "prompt.\n", highlight=False
    )  # fmt: skip
    console.print(study_table(rows))
    console.print(
        "\nNoise of one prompt's step by inpo at the start of the paper's game: E‖û − u‖²/‖u‖²; "
        "responses and pairs trained on a prompt; noise times responses.\n", highlight=False
    )  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for name in ("pairs", "target", "labels", "noise", "responses", "pairs ", "product"):
        table.add_column(name, no_wrap=True)
    for cells in noise_rows(rows):
        table.add_row(*cells)
    console.print(table)
    for name in contents:
        console.print(Text(f"wrote {name}", style="dim"), soft_wrap=True)
