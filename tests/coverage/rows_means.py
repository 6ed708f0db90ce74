"""Rows of means over prompts: win rates, accuracies, their differences, KLs and margins."""

from __future__ import annotations

from coverage_suite import Row

ROWS: list[Row] = []
