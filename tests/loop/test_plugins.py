"""README's plugins, each run as it stands there: a loss, an oracle, a log sink."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.store.directory import RunDirectory

README = Path(__file__).resolve().parents[2] / "README.md"
NAMES = ("my_losses.py", "my_oracle.py", "my_sink.py")


def blocks() -> dict[str, str]:
    """The file name in its first comment → the code, of README's Python blocks that have one."""
    found = re.findall(r"```python\n(# (\w+\.py).*?)```", README.read_text(), re.DOTALL)
    return {name: code for code, name in found}


@pytest.fixture
def folder(tiny_run: Path) -> Path:
    for name in NAMES:
        (tiny_run.parent / name).write_text(blocks()[name])
    text = tiny_run.read_text().replace("eta: 0.05", "prox: hinge, margin: 0.5")
    text = text.replace("oracle: {target_words: 2}", "oracle: {name: shorter, temperature: 2.0}")
    tiny_run.write_text(
        text.replace("iterations: 2", "iterations: 1") + f"plugins: [{', '.join(NAMES)}]\n"
    )
    return tiny_run.parent


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what a plugin registers stays."""
    words = [sys.executable, "-m", "comal_fast", *arguments]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


def test_each_is_short() -> None:
    for name in NAMES:
        lines = [line for line in blocks()[name].splitlines() if line.strip()]
        assert len(lines) <= 22, name


def test_a_run_with_all_three(folder: Path) -> None:
    done = command(folder, "run", "tiny.yaml", "phases=process")
    assert done.returncode == 0, done.stderr
    run = RunDirectory(folder / "run")
    steps = [row for row in run.rows() if row["phase"] == "train"]
    assert steps and steps[0]["loss"] == pytest.approx(
        0.25, rel=1e-4
    )  # margin², every log-ratio being 0
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert done.stdout.count("step 1 of π_1: loss 0.250") == 1  # the sink, in the phase's process
    samples, matrices = run.iteration(1).samples.read(), run.iteration(1).judgments.read()
    words = [len(text.split()) for text in samples["response"].to_pylist()[:3]]
    won = matrices["matrix"][0].as_py()[1]  # the first prompt's response 0 against 1
    assert (won > 0.5) == (words[0] < words[1]) and (won == 0.5) == (words[0] == words[1])

    before = run.iteration(1).samples.path.stat().st_mtime_ns
    key, judged = run.iteration(1).model.key(), run.iteration(1).judgments.key()
    for name in NAMES[:2]:  # another file makes anew what came of it
        (folder / name).write_text((folder / name).read_text() + "# changed\n")
    again = command(folder, "run", "tiny.yaml")
    assert again.returncode == 0, again.stderr
    assert run.iteration(1).samples.path.stat().st_mtime_ns == before
    assert run.iteration(1).model.key() != key and run.iteration(1).judgments.key() != judged


def test_its_options_are_options(folder: Path) -> None:
    plugins = [word for name in NAMES for word in ("--plugin", name)]
    done = command(folder, "config", "explain", "algorithm.margin", *plugins)
    assert "algorithm.margin (prox hinge): Log-ratio that is enough, nats" in done.stdout
    assert "default: 1.0" in done.stdout and "range: ≥ 0" in done.stdout
    done = command(folder, "config", "schema", *plugins)
    defined = json.loads(done.stdout)["$defs"]
    assert defined["Shorter"]["properties"]["temperature"]["default"] == 5.0
    assert "margin" in defined["HingeConfig"]["properties"]
    for option, words in (
        ("algorithm.margin=-1", "algorithm.margin: -1.0 is too small; it must be at least 0"),
        ("algorithm.eta=1", "algorithm.eta: prox hinge ignores it; it reads algorithm.margin"),
        ("oracle.target_words=3", "oracle.target_words: oracle shorter ignores it"),
    ):
        done = command(folder, "run", "tiny.yaml", option)
        assert done.returncode == 2 and words in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("none.py", r"plugins: none\.py: no such file"),
        ("no.such.module", r"plugins: no\.such\.module: no such module; a file ends in \.py"),
        ("3", r"algorithm\.prox: 'hinge' is not one of inpo, ipo, dpo"),
    ],
)
def test_what_is_not_there(folder: Path, plugin: str, words: str) -> None:
    if plugin == "3":
        plugin = "json"  # a module that registers nothing
    with pytest.raises(InputError, match=words):
        load_config(folder / "tiny.yaml", [f"plugins=[{plugin}]", "oracle={}"])


def test_a_fault_in_a_plugin_keeps_its_traceback(folder: Path) -> None:
    (folder / "my_losses.py").write_text("import nothing_of_this_name\n")
    done = command(folder, "run", "tiny.yaml")
    assert done.returncode == 1 and "my_losses.py" in done.stderr
    assert "No module named 'nothing_of_this_name'" in done.stderr
