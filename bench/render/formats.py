"""Names, numbers and sizes as text: what the cells of tables and the labels of pictures hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.contender import FLOOR
from bench.problem import DPO
from bench.record import Record, Row

Rows = tuple[list[str], list[list[str]]]  # of a table: its columns, and its rows of text


def spread(seconds: Mapping[str, Any], unit: str) -> str:
    """Median and quartiles in `unit`, s or ms."""
    q25, median, q75 = (seconds[k] * (1e3 if unit == "ms" else 1) for k in ("q25", "median", "q75"))
    digits = 2 if median < 100 else 1
    return f"{median:.{digits}f} ({q25:.{digits}f} – {q75:.{digits}f})"


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def mib(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.0f}"


def full_name(row: Row) -> str:
    """A contender's name, fastest variant, and what is special about it."""
    marks = []
    if row.get("objective", DPO) != DPO:
        marks.append(row["objective"])
    if not row.get("exact", True):
        marks.append("inexact")
    if not row.get("bounded", True) and row["name"] != FLOOR:
        marks.append("holds all logits")
    name = row["name"] if row["name"] != FLOOR else "floor: the plain products"
    name += f", {row['variant']}" if row.get("variant") else ""
    return f"{name} [{'; '.join(marks)}]" if marks else name


def shape_text(found: Record) -> str:
    """A head's sizes, dtype and device."""
    shape = found["shape"]
    return f"{shape['hidden']} × {shape['vocab']}, {shape['dtype']}, {device_text(found)}"


def device_text(found: Record) -> str:
    """The device's name, and the threads of a CPU."""
    device = found["device"]
    return device["name"] + (f", {device['threads']} threads" if "threads" in device else "")
