"""A round robin as tables for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def matrix_table(result: dict[str, Any]) -> Table:
    """A table of win rates, rows against columns, with 95 % intervals; `result`: of `to_json`."""
    cells = {(p["row"], p["column"]): rate(p["win_rate"], p["ci95"]) for p in result["pairs"]}
    table = Table(
        "win rate of", *(f"against {n}" for n in result["names"]),
        title=f"{result['n_prompts']} held-out prompts, 95 % intervals",
    )  # fmt: skip
    for name in result["names"]:
        table.add_row(name, *(cells.get((name, other), "–") for other in result["names"]))
    return table


def standings_table(result: dict[str, Any]) -> Table:
    """A table of the empirical game, a row an entrant."""
    table = Table(
        "entrant", "Nash weight", "in Nash of resamples", "exploitability", "best opponent",
        "shown to beat it", "mean win rate", "tokens",
        title="the game between them: no entrant beats the Nash mixture",
    )  # fmt: skip
    for e in result["entrants"]:
        table.add_row(
            e["name"], f"{e['nash_weight']:.1%}", f"{e['in_nash_of_resamples']:.0%}",
            rate(e["exploitability"], e["ci95"]), e["best_opponent"] or "none",
            e["beaten_by"] or "none", f"{e['mean_win_rate']:.1%}", f"{e['tokens']:.1f}",
        )  # fmt: skip
    return table


def pairs_table(result: dict[str, Any]) -> Table:
    """A table of each pair once: its win rate, the same at equal length, and ties."""
    places = {name: i for i, name in enumerate(result["names"])}
    table = Table("pair", "win rate", "at equal length", "ties")
    for p in result["pairs"]:
        if places[p["row"]] > places[p["column"]]:
            controlled = p["length_controlled"]
            table.add_row(
                f"{p['row']} against {p['column']}", rate(p["win_rate"], p["ci95"]),
                controlled["note"] or rate(controlled["mean"], controlled["ci95"]),
                f"{p['ties']:.1%}",
            )  # fmt: skip
    return table


def rate(mean: float, interval: list[float]) -> str:
    """A rate in [0, 1] and its interval as text, such as 60.8 % [57.2, 64.3]."""
    return f"{100 * mean:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
