"""The command line itself: help, completion, what is said and what is not, JSON, width."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main, parser
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.store.directory import RunDirectory
from comal_fast.verbs import OVERVIEW, VERBS

COMMAND = [sys.executable, "-m", "comal_fast"]


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    """All verbs, on one screen."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown == OVERVIEW
    words = set(shown.replace(",", " ").split())
    assert not [verb for verb in VERBS if verb not in words]
    lines = shown.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80


def test_start() -> None:
    """Help loads nothing: neither torch nor what reads a configuration."""
    code = (
        "import sys; from comal_fast.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'pydantic', 'rich', 'yaml') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
    took = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([*COMMAND, "--help"], capture_output=True, check=True)
        took.append(time.monotonic() - start)
    assert min(took) <= 0.3


@pytest.mark.parametrize("verb", VERBS)
def test_verb_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"comal-fast {verb}" in shown and "--quiet" in shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "usage: comal-fast"),
        (["trian", "c.yaml"], "'trian' is no verb; did you mean train?"),
        (["xyz"], "'xyz' is no verb; comal-fast --help lists them"),
        (["-q", "-v", "runs"], "not allowed with argument"),
    ],
)
def test_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from comal_fast import __version__

    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"comal-fast {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*VERBS, "gpu-memory", "held-out"))


def test_completed_by_bash(tmp_path: Path) -> None:
    """Bash offers what begins alike: verbs, then a verb's options."""
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = tmp_path / "completion.sh"
    script.write_bytes(subprocess.check_output([*COMMAND, "completion", "bash"]))

    def offered(*words: str) -> set[str]:
        line = " ".join(f"'{w}'" for w in ("comal-fast", *words))
        code = (
            f"source {script}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words)}\n"
            "$(complete -p comal-fast | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\n"
            'echo "${COMPREPLY[@]}"'
        )
        shown = subprocess.check_output(["bash", "-c", code], text=True)
        return set(shown.split())

    assert offered("ru") == {"run", "runs"}
    assert offered("plan", "--gpu-") == {"--gpu-memory"}


@pytest.fixture
def finished(tiny_run: Path) -> Path:
    brief = ["training.num_train_epochs=1", "training.save_steps=0", "algorithm.iterations=1"]
    config = load_config(tiny_run, brief)
    run_all(config)
    return Path(config.output_dir)


def test_json(
    finished: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb that prints figures prints JSON alone, the same figures as its files hold."""
    here = str(finished)

    def printed(*words: str) -> Any:
        capsys.readouterr()
        assert main(list(words)) == 0
        return json.loads(capsys.readouterr().out)

    summary = printed("run", str(finished / "config.yaml"), "--json")
    kept = RunDirectory(finished).read_summary()
    assert kept is not None and summary == {k: v for k, v in kept.items() if k != "key"}
    assert printed("report", here, "--json")["facts"]["Seed"] == "0"
    (run,) = printed("runs", str(finished.parent), "--json")
    assert run["result"] == 1
    game = printed("compare", here, "--json", "-")
    assert main(["compare", here, "--json", str(tmp_path / "game.json")]) == 0
    assert json.loads((tmp_path / "game.json").read_text()) == game
    exact = printed("game", "--algorithm", "inpo", "--outer", "1", "--json")
    assert exact["duality_gap"]
    grid = ["sweep", str(tiny_run), f"output_dir={tmp_path / 'sweep'}", "--grid", "seed=0,1"]
    grid += ["iterations=1", "num_train_epochs=1"]
    assert len(printed(*grid, "--json")["cells"]) == 2
    config = str(finished / "config.yaml")
    plan = printed("plan", config, "--gpu-memory", "24GiB", "--json")
    assert plan["best"] and plan["modes"][0]["bytes"] > 0
    nodes = printed("plan", config, "--gpu", "h100", "--nodes", "2", "--json")
    assert {row["nodes"] for row in nodes["plans"]} == {1, 2}
    assert isinstance(printed("doctor", "--json"), list)
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "a b", "rejected": "a b c d"} for i in range(6)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = str(tmp_path / "page.html")
    found = printed("oracle", "check", config, "--pairs", str(pairs), "--page", page, "--json", "-")
    assert found["oracle"] == "criteria"


def run_it(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | variables
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_quiet_and_verbose(tiny_run: Path) -> None:
    brief = ["training.num_train_epochs=1", "algorithm.iterations=1"]
    loud = run_it("run", str(tiny_run), *brief)
    assert "✓ train π_1" in loud.stdout and "win rate" in loud.stdout
    quiet = run_it("-q", "run", str(tiny_run), *brief, "seed=1", "phases=process")
    assert quiet.returncode == 0, quiet.stderr
    assert "✓" not in quiet.stdout and "win rate" in quiet.stdout
    alone = run_it("run", str(tiny_run), *brief, "seed=1", "phases=process", "--json")
    assert json.loads(alone.stdout)["seed"] == 1 and "win rate" in alone.stderr
    wrong = run_it("run", str(tiny_run), "algorithm.eta=-1", "-v")
    assert wrong.returncode == 2 and "Traceback" in wrong.stderr and "algorithm.eta" in wrong.stderr
    assert "Traceback" not in run_it("run", str(tiny_run), "algorithm.eta=-1").stderr


def test_pipe(finished: Path) -> None:
    """A pipe gets whole lines, as wide as COLUMNS where that is set; colour where it is forced."""
    wide = run_it("runs", str(finished.parent)).stdout
    narrow = run_it("runs", str(finished.parent), COLUMNS="60").stdout
    assert "…" not in wide and max(map(len, narrow.splitlines())) <= 60
    forced = run_it("doctor", FORCE_COLOR="1").stdout
    assert "\x1b[32m" in forced
    assert "\x1b[32m" not in run_it("doctor", FORCE_COLOR="1", NO_COLOR="1").stdout


def test_every_parser_builds() -> None:
    """With all verbs at once too, as completion has it."""
    assert parser().parse_args(["runs", "somewhere"]).folder == Path("somewhere")
