"""A sweep as a markdown page: the command, the table, the picture, and what may be concluded."""

from __future__ import annotations

from collections.abc import Sequence

from comal_fast.sweep.collect import Sweep
from comal_fast.sweep.conclusions import (
    EXACT,
    conclusions,
    exact_columns,
    nats,
    over_seeds,
    points,
    rate,
)
from comal_fast.system.terminal import duration

NONE = "–"


def render(sweep: Sweep, command: str, picture: str) -> str:
    """The page. `command`: what made it. `picture`: the file name, relative to the page."""
    config = sweep.results[0].cell.config
    model = (config.model.gguf_file or config.model.name_or_path).rsplit("/", 1)[-1]
    versions = ", ".join(f"{name} {v}" for name, v in sweep.summary["versions"].items())
    axes = ", ".join(f"`{axis.key}` ({', '.join(axis.values)})" for axis in sweep.axes)
    seconds = sum(r.seconds for r in sweep.results)
    parts = [
        f"# Evidence: {sweep.folder.name}",
        f"Grid: {axes}. Model {model}, prox {config.algorithm.prox}, "
        f"{config.algorithm.iterations} iterations of {config.data.prompts_per_iteration or 'all'} "
        f"prompts × {config.generation.num_generations} samples, at most "
        f"{config.generation.max_new_tokens} tokens; {len(sweep.results[0].wins)} held-out "
        f"prompts, {config.evaluation.num_generations} sample(s) each; judged by the "
        f"`{config.oracle.name}` oracle"
        + (f", and a second time by `{sweep.judge}`" if sweep.judge else "")
        + f". {len(sweep.results)} of {len(sweep.cells)} cells, "
        f"{duration(seconds)} in all on {sweep.summary['device']}; {versions}.",
        f"```\n{command}\n```",
        f"![A win rate per cell, and paired differences between settings]({picture})",
        "## Final policy of each cell",
        "Win rates are against the initial policy, with 95 % intervals over prompts. "
        "At equal length: the length term of AlpacaEval 2 LC (arXiv 2404.04475) taken out. "
        "Seconds are what the cell itself took; it starts from what it shares with another.",
        _table(
            [*(a.short for a in sweep.axes), "win rate", "at equal length",
             *(["second judge"] if sweep.judge else []), "KL to initial, nats", "tokens",
             "diagnostics", *(EXACT if sweep.game_known else ()), "seconds"],
            [
                [
                    *(r.cell.settings[a.key] for a in sweep.axes), rate(r.win_rate),
                    rate(r.controlled, r.not_comparable),
                    *([rate(sweep.second[r.cell.name])] if sweep.judge else []),
                    nats(r.kl), f"{r.tokens:.1f}",
                    _diagnostics(r.findings, r.ended), *exact_columns(r), f"{r.seconds:.0f}",
                ]
                for r in sweep.results
            ],
        ),
    ]  # fmt: skip
    if sweep.averages:
        parts += [
            "## Over the seeds",
            "Means of the cells that differ in their seed alone; 95 % intervals over the choice of "
            "seeds and of prompts.",
            _table(
                [*(a.short for a in sweep.axes if a.key != "seed"), "seeds", "win rate",
                 "at equal length", *(["second judge"] if sweep.judge else []),
                 "KL to initial, nats"],
                [
                    [
                        *average.settings.values(), str(average.seeds), rate(average.win_rate),
                        rate(average.controlled, "not comparable"),
                        *([rate(average.second)] if sweep.judge else []), nats(average.kl),
                    ]
                    for average in sweep.averages
                ],
            ),
        ]  # fmt: skip
    if sweep.effects:
        parts += [
            "## One setting against another",
            "Everything else the same, averaged over the rest of the grid and paired by prompt. "
            "Points are percentage points of win rate against the initial policy; the joint "
            "interval holds for all rows together (Bonferroni). At equal KL: if both were as near "
            "to the initial policy as the nearer is, a win rate's gain growing with the root of "
            "the KL (arXiv 2210.10760). Head to head: the first setting's policies judged against "
            "the second's." + over_seeds(sweep),
            _table(
                ["option", "first", "second", "difference, points", "joint interval", "at equal KL",
                 "head to head", "at equal length",
                 *(["second judge, points", "its head to head"] if sweep.judge else []),
                 "pairs of cells"],
                [
                    [
                        e.axis.short, e.a, e.b, points(e.difference),
                        points(e.joint).split(" ", 1)[1], points(e.equal_kl),
                        rate(e.head_to_head), rate(e.equal_length),
                        *([points(e.second), rate(e.second_head_to_head)] if sweep.judge else []),
                        str(e.pairs),
                    ]
                    for e in sweep.effects
                ],
            ),
        ]  # fmt: skip
    if sweep.standings:
        parts += [
            "## The game between the cells",
            "No cell beats the Nash mixture of them; exploitability is the best opponent's win "
            "rate above 50 %. Its interval counts that the best of all was picked.",
            _table(
                ["cell", "Nash weight", "in Nash of resamples", "exploitability",
                 "best opponent", "shown to beat it", "mean win rate"],
                [
                    [
                        s.name, f"{s.nash:.1%}", f"{share:.0%}",
                        f"{s.exploitability:.1%} [{s.interval[0]:.1%}, {s.interval[1]:.1%}]",
                        s.best_opponent or "none", s.beaten_by or "none", f"{s.mean:.1%}",
                    ]
                    for s, share in zip(sweep.standings, sweep.support, strict=True)
                ],
            ),
        ]  # fmt: skip
    parts += ["## What may be concluded", "\n".join(f"- {s}" for s in conclusions(sweep))]
    return "\n\n".join(parts) + "\n"


def _diagnostics(findings: Sequence[str], ended: str | None) -> str:
    fired = ", ".join(name.replace("_", " ") for name in findings) or "none"
    return f"{fired}; ended by {ended.replace('_', ' ')}" if ended else fired


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
