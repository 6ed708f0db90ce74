"""Tables of README and docs, rendered from the records, so that no figure is typed by hand."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]
Rows = tuple[list[str], list[list[str]]]  # columns, rows of text


def spread(seconds: Record, unit: str) -> str:
    """Median and quartiles in `unit`, s or ms."""
    q25, median, q75 = (seconds[k] * (1e3 if unit == "ms" else 1) for k in ("q25", "median", "q75"))
    digits = 2 if median < 100 else 1
    return f"{median:.{digits}f} ({q25:.{digits}f} – {q75:.{digits}f})"


def full_name(row: Record) -> str:
    """Name, fastest variant, what is special about it."""
    marks = []
    if row.get("objective", "dpo") != "dpo":
        marks.append(row["objective"])
    if not row.get("exact", True):
        marks.append("inexact")
    if not row.get("bounded", True) and row["name"] != "floor":
        marks.append("holds all logits")
    name = row["name"] if row["name"] != "floor" else "floor: the plain products"
    name += f", {row['variant']}" if row.get("variant") else ""
    return f"{name} [{'; '.join(marks)}]" if marks else name


def head_rows(result: Record, tokens: int) -> Rows:
    """Fastest first."""
    timed = [r for r in result["rows"] if r.get("tokens") == tokens and "seconds" in r]
    timed.sort(key=lambda r: r["seconds"]["median"])
    unit = "s" if timed[-1]["seconds"]["median"] > 1 else "ms"
    rows = [
        [
            full_name(r),
            spread(r["seconds"], unit),
            f"{r['ratio_to_floor']:.2f}",
            f"{max(r['errors'].values()):.0e}" if "errors" in r else "",
        ]
        for r in timed
    ]
    return ["contender", f"{unit}, median (quartiles)", "× floor", "largest error"], rows
