"""bench table: documents from records, and only from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import documents, record
from bench.__main__ import main
from bench.render import coverage
from comal_fast.errors import InputError

SMALL = ["--device", "cpu", "--tokens", "128", "--hidden", "16", "--vocab", "300", "--repeat", "1"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder of its own, with a head record in it."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    assert main(["head", *SMALL, "--peers", "torch", "--json", "--plot"]) == 0
    return next((tmp_path / "results").iterdir())


def test_a_document_shows_the_newest_record(results: Path, tmp_path: Path) -> None:
    (first,) = results.glob("*-head.json")
    newer = json.loads(first.read_text())
    for row in newer["rows"]:
        if row["name"] == "comal_kernels":
            row["seconds"] |= {"median": 0.1236, "q25": 0.12, "q75": 0.13}
    (results / "2999-01-01-head.json").write_text(json.dumps(newer | {"date": "2999-01-01"}))
    document = tmp_path / "README.md"
    document.write_text(
        f"Before\n<!-- bench: head {results.name} 128 -->\nSTALE\n<!-- /bench -->\nAfter\n"
    )
    assert main(["table", "--check", str(document)]) == 1
    assert main(["table", str(document)]) == 0
    text = document.read_text()
    assert "123.6 (120.0 – 130.0)" in text and "STALE" not in text
    assert text.startswith("Before\n") and text.endswith("After\n")
    assert main(["table", "--check", str(document)]) == 0


def test_its_picture_is_linked(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "docs" / "page.md"
    document.parent.mkdir()
    document.write_text(f"<!-- bench: head {results.name} -->\n<!-- /bench -->\n")
    assert main(["table", str(document)]) == 0
    (picture,) = results.glob("*-head.png")
    assert f"](../results/{results.name}/{picture.name})" in document.read_text()


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("heads cpu", "unknown; known are ceilings, compile-sm100, "),
        ("head no-such-device", "no record of head in bench/results/no-such-device"),
    ],
)
def test_a_mark_without_a_record_is_an_error(
    mark: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"<!-- bench: {mark} -->\n<!-- /bench -->\n")
    assert main(["table", str(document)]) == 2
    assert message in capsys.readouterr().err


def test_the_documents_show_the_records() -> None:
    for name in documents.DOCUMENTS:
        path = record.ROOT / name
        assert documents.render(path.read_text(), str(path)) == path.read_text()


def test_a_study_that_is_no_record_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "page.md"
    for name in ("games/none.json.gz", "../LOG.md"):
        document.write_text(f"<!-- study: {name} -->\n<!-- /study -->\n")
        assert main(["table", str(document)]) == 2
        assert "no record of a study" in capsys.readouterr().err


def test_the_coverage_table_shows_the_record(tmp_path: Path) -> None:
    row = {
        "interval": "win rate", "data": "0/1", "bounds": [0.93, 0.975], "why": "",
        "replications": 100, "answered": 100, "error": 0.02, "wholly_below": 0.02,
    }  # fmt: skip
    rows = [
        {**row, "n": 10, "truth": 0.5, "coverage": 0.97, "width": 0.5},
        {**row, "n": 10, "truth": 0.9, "coverage": 0.94, "width": 0.3},
        {**row, "n": 56, "truth": 0.5, "coverage": 0.95, "width": 0.25, "why": "a lattice"},
        {**row, "n": 256, "truth": 0.5, "answered": 0, "coverage": None, "width": None},
    ]
    head = {"command": "make coverage SEED=0", "date": "2026-01-01", "replications": 100}
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps({**head, "versions": {"numpy": "2"}, "rows": rows}))
    text = coverage.render(path)
    cells = "94.0 – 97.0 % (± 0.2) | 95.0 % (± 0.12) | none printed"
    assert f"| win rate | 0/1 | 0.5 – 0.9 | {cells} |" in text
    assert "- win rate, 93.0% to 97.5% asked for: a lattice." in text
    path.write_text("[]")
    with pytest.raises(InputError, match="no record of `make coverage`"):
        coverage.render(path)
