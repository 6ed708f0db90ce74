"""A bench is one file: what a new one needs, and that nothing else must know of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import benches, record, run_all
from bench.__main__ import main

NEW = """
from bench import options, record
from bench.bench import Bench, Call
from bench.render import plots, terminal
from bench.render.markdown import section


def run(args):
    times = range(1, args.repeat + 1)
    rows = [{"name": f"echo {n}", "seconds": dict(q25=n, median=n, q75=n)} for n in times]
    return record.new("echo-loud", args.device, shape={}, rows=rows)


def echo_rows(found):
    return ["echo", "s"], [[r["name"], str(r["seconds"]["median"])] for r in found["rows"]]


BENCH = Bench(
    verb="echo",
    help="how long echoes last",
    add_options=lambda parser: options.add(parser, "device", "repeat", repeat=2),
    run=run,
    records=("echo-loud",),
    show=lambda found: terminal.table("Echoes here", echo_rows(found)),
    markdown=lambda found, tokens: section(found, "Echoes there:", echo_rows(found)),
    draw=lambda found: plots.bars(found["rows"], lambda tokens: "Echoes drawn"),
    failed=lambda found: len(found["rows"]) > 3,
    in_all=(Call("cpu", 0, "--repeat 3"),),
)
"""


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file more among the benches; yields a results folder of its own."""
    folder = tmp_path / "benches"
    folder.mkdir()
    (folder / "echo.py").write_text(NEW)
    monkeypatch.setattr(benches, "__path__", [*benches.__path__, str(folder)])
    monkeypatch.setattr(benches, "echo", None, raising=False)  # so that it is gone again
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    yield tmp_path / "results"
    sys.modules.pop("bench.benches.echo", None)


def test_a_new_file_is_a_verb(echo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "Echoes here" in shown and "echo 2" in shown
    assert not echo.exists()  # nobody asked for a record
    assert main(["echo", "--device", "cpu", "--repeat", "4"]) == 1


def test_its_record_and_picture_stand_in_documents(echo: Path, tmp_path: Path) -> None:
    assert main(["echo", "--device", "cpu", "--json", "--plot"]) == 0
    (picture,) = echo.rglob("*-echo-loud.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    document = tmp_path / "page.md"
    device = picture.parent.name
    document.write_text(f"<!-- bench: echo-loud {device} -->\n<!-- /bench -->\n")
    assert main(["table", str(document)]) == 0
    text = document.read_text()
    assert "Echoes there:\n\n| echo | s |\n|---|---:|\n| echo 1 | 1 |\n| echo 2 | 2 |\n" in text
    assert f"](results/{device}/{picture.name})" in text
    assert main(["table", "--check", str(document)]) == 0


def test_it_takes_its_place_in_all(echo: Path) -> None:
    planned = [f"{bench.verb} {call.arguments}".rstrip() for bench, call in run_all.calls("cpu")]
    assert planned == [
        "echo --repeat 3",
        "head --tokens 1024",
        "step",
        "scaling --tokens 256 1024 2048",
        "profile step",
        "judge --repeat 1 --sizes 4 16",
        "generate --count 16 --tokens 24 --repeat 1",
        "model",
    ]
    assert all(bench.verb != "echo" for bench, _ in run_all.calls("cuda"))


def test_no_two_benches_share_a_verb_or_a_record() -> None:
    found = benches.discover()
    for names in ([b.verb for b in found], [name for b in found for name in b.records]):
        assert len(set(names)) == len(names)
