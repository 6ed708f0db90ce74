"""README's plugins, each run as it stands there: a loss, an oracle, a log sink."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.store.directory import RunDirectory
from forked import python

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
    words = [python(), "-m", "comal_fast", *arguments]
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
        ("none.py", r"plugins: /.*/none\.py: no such file"),
        ("no.such.module", r"plugins: no\.such\.module: no such module; a file ends in \.py"),
        ("3", r"algorithm\.prox: 'hinge' is not one of inpo, ipo, dpo"),
    ],
)
def test_what_is_not_there(folder: Path, plugin: str, words: str) -> None:
    if plugin == "3":
        plugin = "json"  # a module that registers nothing
    with pytest.raises(InputError, match=words):
        load_config(folder / "tiny.yaml", [f"plugins=[{plugin}]", "oracle={}"])


LOSSES = """
from dataclasses import replace
from comal_kernels import Hyper, PROX, Prox, register

square = {"phi": lambda u, c: (c["beta"] * u) ** 2, "dphi": lambda u, c: 2 * c["beta"] ** 2 * u}
register(Prox("whole", **square, anchor=lambda c: c["beta"] * c["ref"], uses=("ref",),
    hyper={"beta": Hyper(1, 0, 10)}, scale="beta"))
register(replace(PROX["sppo"], name="sppo2"))
register(replace(PROX["dro"], name="dro2"))
"""

READ = """
import json, sys
from comal_fast.config import load_config
from comal_fast.training.items import hyperparameters, make_items

def items(prox, **more):
    given = [f"algorithm.{n}={x}" for n, x in {"prox": prox, "eta": 0.5, **more}.items()]
    config = load_config("tiny.yaml", [*given, "training.train_batch_size=6"])
    made = make_items(config, chosen=[0, 1, 2], rejected=None, preference=[0.2, 0.5, 0.8],
        count=[1, 1, 1], prompt=[0, 0, 0], win_rate=[0.2, 0.5, 0.8], ref_logp=[-3.0, -2.0, -1.0],
        last_logp=[-1.0, -1.0, -1.0])
    table = {n: x.tolist() for n, x in {**made.per_row, **made.per_item}.items()}
    return {"table": table, "hyper": hyperparameters(config)}

whole = load_config("tiny.yaml", ["algorithm.prox=whole"])
print(json.dumps({
    "whole": hyperparameters(whole),
    "type": type(whole.algorithm.beta).__name__,
    **{name: items(prox, tau_eta_ratio=ratio, **({"log_z": "zero"} if prox == "sppo" else {}))
       for name, prox, ratio in (
        ("sppo", "sppo", 0.3), ("sppo2", "sppo2", 0.3), ("none", "sppo2", 0.0),
        ("dro", "dro", 0.3), ("dro2", "dro2", 0.3))},
}))
try:
    load_config("tiny.yaml", ["algorithm.prox=dro2", "training.train_batch_size=1"])
except ValueError as error:
    print(error)
"""


def test_a_loss_is_used_as_its_row_says(tiny_run: Path) -> None:
    """Copies of ours under other names are given what ours are; a whole number is a float."""
    (tiny_run.parent / "losses.py").write_text(LOSSES)
    text = tiny_run.read_text().replace("algorithm: {eta: 0.05, ", "algorithm: {")
    tiny_run.write_text(text.replace("pairing: {strategy: all}\n", "") + "plugins: [losses.py]\n")
    words = [python(), "-c", READ]
    done = subprocess.run(words, cwd=tiny_run.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, refused = done.stdout.splitlines()
    found = json.loads(first)
    assert found["whole"] == {"beta": 1.0} and found["type"] == "float"
    assert found["sppo2"] == found["sppo"] != found["none"]
    assert found["dro2"] == found["dro"]
    assert "prox dro2 takes its baseline from all responses to a prompt" in refused


def test_runs_are_read_from_other_folders(folder: Path, tmp_path: Path) -> None:
    """Two of them, each with its own copy of a plugin."""
    other = tmp_path / "other"
    other.mkdir()
    for path in (folder / "tiny.yaml", *(folder / name for name in NAMES)):
        (other / path.name).write_text(path.read_text())
    for place in (folder, other):
        done = command(place, "run", "tiny.yaml", f"output_dir={place / 'run'}")
        assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = command(elsewhere, "compare", str(folder / "run"), str(other / "run"))
    assert done.returncode == 0, done.stderr
    (other / "my_oracle.py").write_text((other / "my_oracle.py").read_text() + "# changed\n")
    done = command(elsewhere, "compare", str(folder / "run"), str(other / "run"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "oracle 'shorter' is registered already" in done.stderr


def test_a_sweep_sees_that_a_plugin_changed(folder: Path) -> None:
    sweep = ["sweep", "tiny.yaml", "--grid", "margin=0.5,1", "evaluation.bootstrap=200"]
    assert command(folder, *sweep).returncode == 0
    again = command(folder, *sweep)
    assert again.returncode == 0 and "cell 2 of 2" not in again.stdout
    (folder / "my_oracle.py").write_text((folder / "my_oracle.py").read_text() + "# changed\n")
    changed = command(folder, *sweep)
    assert changed.returncode == 0, changed.stderr
    assert "cell 2 of 2" in changed.stdout and "judge iteration 1" in changed.stdout


def test_a_fault_in_a_plugin_keeps_its_traceback(folder: Path) -> None:
    (folder / "my_losses.py").write_text("import nothing_of_this_name\n")
    done = command(folder, "run", "tiny.yaml")
    assert done.returncode == 1 and "my_losses.py" in done.stderr
    assert "No module named 'nothing_of_this_name'" in done.stderr
