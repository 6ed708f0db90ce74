"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from comal_fast.errors import InputError

UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}


def parse_bytes(text: str, name: str) -> int:
    """`8GiB` → bytes. ValueError, which begins with `name`, for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|MiB|GB|MB)\s*", text)
    size = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if size <= 0:
        raise InputError(f"{name}: {text!r} is no size; write a number and a unit, such as 8GiB")
    return size


def gib(size: float) -> str:
    """One decimal, without the unit."""
    return f"{size / 2**30:.1f}"
