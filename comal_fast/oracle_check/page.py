"""The page of an oracle check, and its picture."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from comal_fast.figures.page import Picture, Section, Table, Verdict, render_page
from comal_fast.figures.style import DARK, LIGHT, Theme, dress, legend, new_figure, to_png
from comal_fast.statistics.means import LEAST_PROMPTS

ALT = "Accuracy by confidence, beside the diagonal of a calibrated oracle"


def rate(value: dict[str, Any] | None, digits: int = 1) -> str:
    """Return `mean [low, high]` in percent; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value['mean']:.{digits}%}" + _ends(value, f".{digits}%")


def plain(value: dict[str, Any]) -> str:
    """Return `mean [low, high]` as numbers."""
    return f"{value['mean']:.3f}" + _ends(value, ".3f")


def _ends(value: dict[str, Any], spec: str) -> str:
    if value["ci95"] is None:
        return ""
    low, high = value["ci95"]
    return f" [{low:{spec}}, {high:{spec}}]"


def rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, value with interval, meaning) of every figure."""
    position, length, cycles = (result[name] for name in ("position", "length", "cycles"))
    found = [
        ("accuracy", rate(result["accuracy"]), "share of pairs whose chosen response wins"),
        ("log loss", plain(result["log_loss"]), "−log P(chosen ≻ rejected); 0.693 says nothing"),
        ("confidence", rate(result["confidence"]), "mean of max(P, 1 − P): the accuracy it claims"),
        (
            "calibration error",
            rate(result["ece"]),
            "root mean square of claimed accuracy minus accuracy, without its upward bias",
        ),
    ]
    if position is None:
        found.append(("position bias", "none", "this oracle heeds no order"))
    else:
        found += [
            ("first shown wins", rate(position["first_wins"]), "50 % without position bias"),
            (
                "same in both orders",
                rate(position["same_in_both_orders"]),
                "share of decided pairs whose winner does not change with the order",
            ),
            ("ties", rate(position["ties"]), "share of pairs at P = ½ in one order at least"),
        ]
    if length is not None:
        found += [
            ("longer wins", rate(length["longer_wins"]), "P(longer ≻ shorter), mean"),
            ("longer was chosen", rate(length["longer_chosen"]), "by the people who judged"),
            ("length bias", rate(length["excess"]), "the difference of the two, paired"),
        ]
    if cycles is None:
        found.append(("strict cycles", "–", "no prompt here has three responses"))
    else:
        share = rate(cycles)
        found.append(("strict cycles", share, f"of {cycles['prompts']} prompts with three or more"))
    found.append(("speed", f"{result['pairs_per_second']:.1f} pairs/s", _asked(result)))
    return found


def _asked(result: dict[str, Any]) -> str:
    text = f"{result['seconds']:.1f} s on {result['device']}"
    if "oracle/asked" in result:
        text += f"; {result['oracle/asked']:.0f} asked, {result['oracle/known']:.0f} were known"
    return text


def render(result: dict[str, Any]) -> str:
    """Return the HTML page."""
    accuracy, prompts = result["accuracy"], result["prompts"]
    low, high = accuracy["ci95"]
    outcome: Literal["better", "worse", "open"] = "open"
    if prompts < LEAST_PROMPTS:
        says = f"{prompts} prompts are too few to say more, which takes {LEAST_PROMPTS}"
    elif low > 0.5:
        outcome, says = "better", "It agrees with them more often than chance would"
    elif high < 0.5:
        outcome, says = "worse", "It agrees with them less often than chance would"
    else:
        says = "Whether it agrees with them more often than chance is open"
    verdict = Verdict(
        f"Of {result['pairs']} pairs that people judged, the oracle prefers the chosen response in "
        f"{rate(accuracy)}. {says}.",
        outcome,
    )
    pictures = [Picture.of(to_png(draw(result, LIGHT)), to_png(draw(result, DARK)), ALT)]
    table = Table(f"95 % intervals over {prompts} prompts", ("", "", ""), rows(result), prose=True)
    bins = [(f"{c:.3f}", f"{a:.3f}", str(n)) for c, a, n in result["reliability"]]
    reliable = Table("Groups of alike confidence", ("confidence", "accuracy", "pairs"), bins)
    return render_page(
        title=f"Oracle check: {result['oracle']}",
        heading=f"Oracle check: {result['oracle']} on {result['source']}",
        verdict=verdict,
        facts=[
            ("Pairs", str(result["pairs"])),
            ("Prompts", str(prompts)),
            ("Accuracy", f"{accuracy['mean']:.1%}"),
            ("Calibration error", f"{result['ece']['mean']:.1%}"),
            ("Device", result["device"]),
        ],
        sections=[
            Section("figures", "Figures", tables=[table]),
            Section("calibration", "Calibration", pictures=pictures, tables=[reliable]),
        ],
    )


def draw(result: dict[str, Any], theme: Theme) -> Figure:
    """Draw the accuracy of groups of alike confidence, with 95 % intervals over prompts."""
    figure = new_figure(theme, 3.6)
    axes = figure.subplots()
    dress(axes, theme, "How sure it is, and how often it is right", "confidence", "accuracy")
    confidence, accuracy, size = np.array(result["reliability"]).T
    low, high = np.array(result["reliability_ci95"]).T
    axes.plot([0.5, 1], [0.5, 1], color=theme.muted, lw=1, ls="--", label="calibrated")
    bars = np.maximum(0, np.stack([accuracy - low, high - accuracy]))  # of rounding
    axes.errorbar(
        confidence, accuracy, yerr=bars, fmt="o", ms=5, color=theme.colours[0], capsize=3,
        label=f"groups of about {int(size.mean())} pairs",
    )  # fmt: skip
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(min(0.4, float(low.min())) - 0.02, 1.02)
    legend(axes, theme)
    return figure
