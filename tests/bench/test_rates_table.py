"""The table of the diagnostics' rates, from a record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.documents import render
from bench.render import rates
from comal_fast.errors import InputError


def test_the_table_shows_the_record(tmp_path: Path) -> None:
    row = {"kind": "outward spiral", "prompts": 256, "finds": ["cycling"], "may_fire": ["drift"],
           "fired": {"cycling": 0.9, "drift": 0.25, "slow": 0.0125}}  # fmt: skip
    record = {"command": "make diagnostics SEED=3", "date": "2026-01-01", "runs": 400,
              "iterations": 18, "seeds": [3, 4], "versions": {"numpy": "2"},
              "checks": ["cycling", "drift", "slow"], "rows": [row]}  # fmt: skip
    path = tmp_path / "diagnostics.json"
    path.write_text(json.dumps(record))
    page = "<!-- rates: diagnostics.json -->\nold\n<!-- /rates -->\n"
    text = render(page, "page.md", tmp_path)
    assert "`make diagnostics SEED=3`, 2026-01-01: 400 runs a row" in text and "old" not in text
    assert "| outward spiral | 256 | **90.0%** | (25.0%) | 1.2% |" in text
    assert render(text, "page.md", tmp_path) == text
    path.write_text("{}")
    with pytest.raises(InputError, match="no record of `make diagnostics`"):
        rates.render(path)
