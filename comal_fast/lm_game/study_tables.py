"""A study's record as tables in Markdown, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from comal_fast.lm_game.study import Study, trained_tokens
from comal_fast.statistics import Interval


def markdown(study: Study, baseline: str) -> str:
    """Last iterates, the same by family of games, and conclusions against the run `baseline`."""
    parts = [_last(study, baseline), _families(study), *conclusions(study, baseline)]
    return "\n\n".join(parts) + "\n"


def conclusions(study: Study, baseline: str) -> list[str]:
    """A sentence for each other run and kind of prompt, with the interval that carries it."""
    said = []
    for name in study.names:
        if name == baseline:
            continue
        parts = []
        for words, prompts in _kinds(study):
            found = study.difference(name, baseline, "gap", prompts)
            verdict = "not shown to differ"
            if found.excludes(0):
                verdict = "below" if found.mean < 0 else "above"
            parts.append(f"{verdict} on {words} ({_signed(found)})")
        said.append(f"- The mean gap of `{name}` against `{baseline}`'s: {', '.join(parts)}.")
    return ["\n".join(said)]


def _last(study: Study, baseline: str) -> str:
    rows = []
    for name in study.names:
        (_, train), (_, held) = _kinds(study)
        gap = study.values(name, "gap")
        cells = [study.interval(gap, prompts) for prompts in (train, held)]
        differences = ["", ""]
        if name != baseline:
            differences = [
                _signed(study.difference(name, baseline, "gap", prompts))
                for prompts in (train, held)
            ]
        tokens = trained_tokens(study, name)
        away, leak = study.values(name, "total_variation"), study.values(name, "leak")
        rows.append(
            [
                f"`{name}`",
                *map(_interval, cells),
                *differences,
                *(f"{away[:, prompts].mean():.3f}" for prompts in (train, held)),
                *(f"{leak[:, prompts].mean():.3f}" for prompts in (train, held)),
                *([] if tokens is None else [f"{tokens:,.0f}"]),
            ]
        )
    head = [
        "run", "gap", "gap, held-out", f"minus `{baseline}`", f"minus `{baseline}`, held-out",
        "total variation", "held-out", "other strings", "held-out",
    ]  # fmt: skip
    if all(trained_tokens(study, name) is not None for name in study.names):
        head.append("trained tokens")
    return _table(head, rows)


def _families(study: Study) -> str:
    rows = []
    for name in study.names:
        gap = study.values(name, "gap")
        found = [study.interval(gap, study.family(family)) for family in study.families]
        rows.append([f"`{name}`", *map(_interval, found)])
    counts = [int(study.family(family).sum()) for family in study.families]
    head = [f"{f} ({n})" for f, n in zip(study.families, counts, strict=True)]
    return _table(["gap by family (training prompts)", *head], rows)


def _kinds(study: Study) -> list[tuple[str, np.ndarray]]:
    return [("training prompts", ~study.held_out), ("held-out prompts", study.held_out)]


def _interval(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _signed(found: Interval) -> str:
    text = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return text.replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
