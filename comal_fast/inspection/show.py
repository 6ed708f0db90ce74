"""The tally as a person reads it: colours on a terminal, words and marks without."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.table import Table
from rich.text import Text

from comal_fast.config import Config
from comal_fast.inspection.tally import NAMES, Example, Tally, distribution, named, pieces
from comal_fast.system.terminal import console

MOST = 240  # tokens of a part that are shown, half of them from its end
_BARS = " ▁▂▃▄▅▆▇█"
_SHOWN = {"\n": "↵\n", "\t": "⇥\t", "\N{ZERO WIDTH JOINER}": "\N{ZERO WIDTH JOINER}"}
_REFUSED = 5  # lines about rows that a run would refuse


def show(found: Tally, tokenizer: Any, config: Config) -> None:
    """Print examples, counts, lengths."""
    if found.examples:
        console.print(
            Text.assemble(
                "tokens between ",
                ("│", "dim"),
                ", special ones in ",
                ("⟦⟧", "cyan"),
                "; given: ",
                ("prompt", "dim"),
                *_trained(found),
            )  # fmt: skip
        )
    for example in found.examples:
        console.print(_example(tokenizer, example), soft_wrap=True)
    console.print(_counts(found, config), soft_wrap=True)
    if found.lengths:
        console.print(_lengths(found))
    for line in found.refused[:_REFUSED]:
        console.print(Text(f"refused: {safe(line)}", "red"), soft_wrap=True)


def safe(text: str) -> str:
    """With line ends and tabs marked; other characters that control a terminal are escaped."""
    return "".join(
        _SHOWN.get(c, c) if c in _SHOWN or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )  # fmt: skip


def _trained(found: Tally) -> list[Any]:
    if not found.pairs:
        return ["; the response is sampled"]
    return ["; trained on: ", ("chosen", "bold green"), " and ", ("rejected", "bold red")]


def _example(tokenizer: Any, example: Example) -> Text:
    total = {part: len(ids) for part, ids in (("prompt", example.prompt), *example.answers.items())}
    counted = ", ".join(f"{part} {count}" for part, count in total.items())
    held = ", held out" if example.held_out else ""
    sure = (
        "" if example.probability is None else f", P(chosen ≻ rejected) {example.probability:.3g}"
    )
    text = Text(f"\n{safe(example.source)} ({counted} tokens{held}{sure})\n", "bold")
    text.append(_part(tokenizer, "[prompt]", example.prompt, "dim"))
    for name, ids in example.answers.items():
        style = "bold green" if name == "chosen" else "bold red"
        text.append("" if text.plain.endswith("\n") else "\n")
        text.append(_part(tokenizer, f"[{name}, trained]", ids, style))
    return text


def _part(tokenizer: Any, label: str, ids: list[int], style: str) -> Text:
    text = Text(f"{label} ", "italic")
    shown = [ids] if len(ids) <= MOST else [ids[: MOST // 2], ids[-MOST // 2 :]]
    for number, some in enumerate(shown):
        if number:
            text.append(f" … {len(ids) - MOST:,} tokens … ", "italic")
        joined = False
        for piece, special in pieces(tokenizer, some):
            if special:
                text.append(f"⟦{safe(piece)}⟧", "bold cyan" if style != "dim" else "cyan")
            else:
                text.append("│" if joined else "", "dim")
                text.append(safe(piece), style)
            joined = not special
    return text


def _counts(found: Tally, config: Config) -> Table:
    kind = "pairs" if found.pairs else "prompts"
    table = Table(title=f"\n{safe(named(config)[0])}: {kind}", show_header=False)
    rows = [("rows", found.rows), ("used", found.used)]
    rows += [("  of them held out by their split", found.held_out)] if found.held_out else []
    rows += [("the same tokens as an earlier row", found.duplicates)]
    rows += [(f"left out: {why}", count) for why, count in found.left_out.items()]
    rows += [("refused", len(found.refused))]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    return table


def _lengths(found: Tally) -> Table:
    table = Table(title="tokens")
    parts = {part: distribution(values) for part, values in found.lengths.items()}
    for name in ("", *NAMES, "mean", "0 … max"):
        wide = name in ("", "0 … max")
        table.add_column(name, justify="left" if wide else "right", no_wrap=True)
    for part, numbers in parts.items():
        counts = numbers["histogram"]["counts"]
        bars = "".join(_BARS[-(-8 * count // max(counts))] for count in counts)
        values = [f"{numbers[name]:,.0f}" for name in (*NAMES, "mean")]
        table.add_row(part, *values, bars)
    return table
