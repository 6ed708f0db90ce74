"""What a sweep's intervals allow to be said, in sentences, and no more."""

from __future__ import annotations

import numpy as np

from comal_fast.report.facts import percent
from comal_fast.statistics import Interval
from comal_fast.statistics.means import LEAST_PROMPTS, difference_interval
from comal_fast.sweep.averages import Average
from comal_fast.sweep.collect import Sweep
from comal_fast.sweep.effects import Effect
from comal_fast.sweep.grid import Axis, Cell
from comal_fast.sweep.results import Result

INTERVAL = "ref_update_interval"
EXACT = ("duality gap", "total variation from Nash")


def conclusions(sweep: Sweep) -> list[str]:
    """Return one sentence per finding; each is true of the intervals as they are."""
    prompts = len(sweep.results[0].wins)
    if prompts < LEAST_PROMPTS:
        few = (
            f"{prompts} held-out prompts are too few for a conclusion, which takes {LEAST_PROMPTS}."
        )
        known = _exact(sweep.results)  # measured, not judged: on whole policies of a known game
        return [few, *_same(sweep.results), *known, *_trouble(sweep), _limits(sweep)]
    return [
        *_against_initial(sweep.results),
        *(_average(a, sweep) for a in sweep.averages),
        *_same(sweep.results),
        *_best(sweep.results),
        *(_effect(e, sweep.cells[0]) for e in sweep.effects),
        *_nash(sweep),
        *_exact(sweep.results),
        *_trouble(sweep),
        _limits(sweep),
    ]


def level_name(axis: Axis, value: str, cell: Cell) -> str:
    """option=value; an interval no shorter than the run never moves the reference."""
    name = f"`{axis.short}={value}`"
    if axis.short == INTERVAL and value.isdigit():
        if int(value) >= cell.config.algorithm.iterations:
            return f"{name} (static reference)"
        return f"{name} (moving reference)"
    return name


def _against_initial(results: list[Result]) -> list[str]:
    above = [r for r in results if r.win_rate.low > 0.5]
    below = [r for r in results if r.win_rate.high < 0.5]
    open_ones = len(results) - len(above) - len(below)
    sentences = [
        f"Against the initial policy, {len(above)} of {len(results)} settings have a win rate "
        f"whose 95 % interval lies above 50 %"
        + (f", {len(below)} have one below it" if below else "")
        + (f"; {open_ones} intervals include 50 %, which shows no difference" if open_ones else "")
        + "."
    ]
    longer = [r for r in results if r.controlled.low > 0.5]
    apart = sum(r.not_comparable is not None for r in results)
    sentences.append(
        f"At equal response length, {len(longer)} of {len(results)} lie above 50 % "
        "with their interval" + (f"; {apart} cannot be compared" if apart else "") + "."
    )
    return sentences


def _average(average: Average, sweep: Sweep) -> str:
    cell = sweep.cells[0]
    named = [level_name(a, average.settings[a.key], cell) for a in sweep.axes if a.key != "seed"]
    relation = "excludes" if average.win_rate.excludes(0.5) else "includes"
    text = f"{', '.join(named) or 'The mean'}: {rate(average.win_rate)} against the initial policy "
    text += f"over {average.seeds} seeds, which {relation} 50 %"
    if np.isfinite(average.second.mean):
        text += f"; by the second judge {rate(average.second)}"
    return text + "."


def _same(results: list[Result]) -> list[str]:
    """Cells that no measurement tells apart: an option that had nothing to act on, say."""
    groups: dict[tuple[bytes, float, float], list[str]] = {}
    for r in results:
        key = (np.asarray(r.wins).tobytes(), r.kl.mean, r.tokens)
        groups.setdefault(key, []).append(f"`{r.cell.name}`")
    return [
        f"{', '.join(names)} are alike in every measurement: what they differ in changed nothing."
        for names in groups.values()
        if len(names) > 1
    ]


def _best(results: list[Result]) -> list[str]:
    """Whether the highest win rate is told apart from the others, paired by prompt."""
    if len(results) < 2 or len({r.prompts for r in results}) > 1:
        return []
    best = max(results, key=lambda r: r.win_rate.mean)
    others = [r for r in results if r is not best]
    pairs = len(results) * (len(results) - 1) // 2
    level = 1 - 0.05 / pairs  # the best was picked by looking, so all pairs count
    lows = [difference_interval(best.wins, r.wins, level).low for r in others]
    same = [r.cell.name for r, low in zip(others, lows, strict=True) if low <= 0]
    text = f"The highest win rate seen is {percent(best.win_rate.mean)}, of `{best.cell.name}`; "
    if not same:
        return [text + "its paired difference from every other setting excludes 0."]
    return [
        text + f"its paired difference from {len(same)} of the {len(others)} other settings "
        f"includes 0 (95 % over all pairs together), so it is not shown to be the best."
    ]


def _effect(effect: Effect, cell: Cell) -> str:
    a, b = (level_name(effect.axis, value, cell) for value in (effect.a, effect.b))
    joint, shift = effect.joint, points(effect.difference)
    if joint.low > 0:
        verdict = f"{a} is higher"
    elif joint.high < 0:
        verdict = f"{b} is higher"
    elif effect.difference.excludes(0):
        verdict = "no difference is shown once all comparisons of this sweep are counted"
    else:
        verdict = "no difference is shown"
    text = f"{a} minus {b}, averaged over the rest: {shift} points of win rate: {verdict}"
    if np.isfinite(effect.head_to_head.mean):
        versus = effect.head_to_head
        relation = "includes" if not versus.excludes(0.5) else "excludes"
        text += f"; against each other {rate(versus)}, which {relation} 50 %"
    if np.isfinite(effect.second.mean):
        text += f"; the second judge sees {points(effect.second)} points"
    return text + "."


def _nash(sweep: Sweep) -> list[str]:
    found = list(zip(sweep.standings, sweep.support, strict=True))
    held = [f"`{s.name}` {percent(s.nash)}" for s, _ in found if s.nash > 1e-9]
    if not held:
        return []
    often = [f"`{s.name}` ({share:.0%})" for s, share in found if share >= 0.05]
    return [
        f"In the game between the cells as measured, the Nash mixture is {', '.join(held)}; over "
        f"resampled prompts, these are in it in at least 5 % of resamples: {', '.join(often)}."
    ]


def _exact(results: list[Result]) -> list[str]:
    gaps = {r.cell.name: r.exact.gap for r in results if r.exact}
    if len(gaps) < 2:
        return []
    least, most = (pick(gaps, key=lambda name: gaps[name].mean) for pick in (min, max))
    near = [n for n, gap in gaps.items() if n != least and gap.low <= gaps[least].high]
    text = (
        f"Computed exactly in the known game, the duality gap is least at `{least}`, "
        f"{three(gaps[least])}, and largest at `{most}`, {three(gaps[most])}"
    )
    if near:
        text += f"; the intervals of {len(near)} of the others reach down to the least one's"
    return [text + "."]


def _trouble(sweep: Sweep) -> list[str]:
    # what broke an iteration off ended the run and is no finding
    names = {r.cell.name: dict.fromkeys([*r.findings, r.ended]) for r in sweep.results}
    fired = {cell: said for cell, found in names.items() if (said := [n for n in found if n])}
    sentences = [
        "Diagnostics fired in "
        + "; ".join(f"`{cell}` ({', '.join(said)})" for cell, said in fired.items())
        + "."
        if fired
        else "No diagnostic fired in any cell."
    ]
    if sweep.failed:
        listed = "; ".join(f"`{name}`: {why}" for name, why in sweep.failed.items())
        sentences.append(f"Cells that broke off: {listed}.")
    return sentences


def _limits(sweep: Sweep) -> str:
    seeds = sorted({r.cell.config.seed for r in sweep.results})
    prompts = len(sweep.results[0].wins)
    if len(seeds) > 1:
        return (
            f"A cell's interval covers the choice of its {prompts} held-out prompts and the "
            f"responses sampled for them, of one training run.{over_seeds(sweep)} One model and "
            "one oracle."
        )
    return (
        f"The intervals cover the choice of the {prompts} held-out prompts and the responses "
        f"sampled for them, nothing else: one training run per setting (seed {seeds[0]}), one "
        "model and one oracle; how much another seed would change is not measured."
    )


def over_seeds(sweep: Sweep) -> str:
    """What the intervals of differences cover, where there are several seeds."""
    seeds = {r.cell.config.seed for r in sweep.results}
    if len(seeds) < 2:
        return ""
    return (
        f" The differences' intervals cover the choice of seeds and of prompts, from {len(seeds)} "
        "seeds; prompts that several seeds hold out are counted as shared."
    )


def rate(value: Interval, missing: str | None = None) -> str:
    """Return a win rate as text, 60.8 % [57.2, 64.3]; where there is none `missing`, or a dash."""
    if not np.isfinite(value.mean):
        return missing or "–"
    return f"{100 * value.mean:.1f} % [{100 * value.low:.1f}, {100 * value.high:.1f}]"


def nats(value: Interval) -> str:
    """Return a KL as text, 8.48 [7.76, 9.20]; a KL is never below 0, whatever its interval says."""
    return f"{value.mean:.2f} [{max(0.0, value.low):.2f}, {value.high:.2f}]"


def exact_columns(result: Result) -> list[str]:
    """The values of EXACT, where the game is known."""
    exact = result.exact
    return [three(exact.gap), three(exact.total_variation)] if exact else []


def three(value: Interval) -> str:
    """A value as text, three decimals: 0.030 [0.025, 0.036]."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def points(value: Interval) -> str:
    """A difference of rates as text, in percentage points: +2.1 [−0.4, +4.6]; or a dash."""
    if not np.isfinite(value.mean):
        return "–"
    low, mean, high = (signed(100 * x) for x in (value.low, value.mean, value.high))
    return f"{mean} [{low}, {high}]"


def signed(value: float) -> str:
    """A number as text, one decimal with its sign; no sign for zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")
