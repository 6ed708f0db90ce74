"""Real runs of a tiny model: each failure provoked, a healthy run silent, and what ends a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.report.load import load_run
from games import CYCLIC, ORDERED, POISONED, play

PAGE = "evaluation.report=true"
GAME = [  # one letter a response, so that a second teaches a preference
    "data.eval_prompts=40", "data.prompts_per_iteration=40", "generation.max_new_tokens=1",
    "generation.num_generations=4", "generation.batch_size=160", "algorithm.eta=0.2",
    "algorithm.ref_update_interval=1", "training.learning_rate=2e-3",
    "training.train_batch_size=16", "training.max_tokens_per_microbatch=4000",
    "training.save_steps=0", "evaluation.num_generations=4",
]  # fmt: skip


@pytest.fixture
def game_run(tiny_run: Path) -> Path:
    """The tiny run with enough prompts for an interval."""
    prompts = [{"prompt": f"Say {'very ' * (i % 4)}nicely what {i} is."} for i in range(80)]
    text = "".join(json.dumps(row) + "\n" for row in prompts)
    (tiny_run.parent / "prompts.jsonl").write_text(text)
    return tiny_run


def names(summary: dict[str, Any]) -> set[str]:
    return {finding["name"] for finding in summary["findings"]}


def test_a_healthy_run_is_silent_and_the_report_says_so(
    game_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, ORDERED)
    summary = run_all(load_config(game_run, [*GAME, PAGE, "algorithm.iterations=3"]))
    assert summary["win_rate"]["ci95"][0] > 0.5, "the run must have something to be healthy about"
    assert summary["findings"] == [] and summary["ended"] is None and summary["result"] == 3
    page = (game_run.parent / "run/report.html").read_text()
    assert "3 iterations checked: no sign of failure." in page
    rows = map(json.loads, (game_run.parent / "run/metrics.jsonl").read_text().splitlines())
    assert [r["diagnostics/fired"] for r in rows if r["phase"] == "diagnose"] == [[], [], []]


def test_poisoned_rewards_degrade_and_roll_back(
    game_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Judged by the reverse of what the evaluation prefers: π_2 loses, π_1 is the result."""
    play(monkeypatch, POISONED, ORDERED)
    options = [*GAME, PAGE, "algorithm.iterations=3"]
    arguments = ["run", str(game_run), *options, "diagnostics.degradation=rollback"]
    assert main(arguments) == 3
    run = game_run.parent / "run"
    summary = json.loads((run / "summary.json").read_text())
    last = summary["iterations"]
    assert last < 3 and summary["result"] == last - 1
    assert summary["ended"]["by"] == "degradation"
    shown = " ".join(capsys.readouterr().out.split())
    assert "its last step went backwards" in shown or "it loses to the mixture" in shown
    assert (run / f"iterations/{last:04d}/model").is_dir()  # nothing is deleted
    assert not (run / f"iterations/{last + 1:04d}").exists()
    page = (run / "report.html").read_text()
    assert "Ended by a diagnostic" in page and "rolled back" in page
    assert main(arguments) == 3  # ends at the same place again
    assert json.loads((run / "summary.json").read_text())["result"] == last - 1
    weights = run / f"iterations/{last:04d}/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert main(["run", str(game_run), *options, "diagnostics.degradation=warn"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 3 and "degradation" in names(summary)
    assert weights.stat().st_mtime_ns == before  # and went on from where it had ended


def test_too_large_a_step_diverges_and_stops(
    game_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, ORDERED)
    options = [*GAME, "generation.max_new_tokens=8", "training.learning_rate=0.3"]
    summary = run_all(load_config(game_run, options))
    assert summary["ended"]["by"] == "divergence" and summary["iterations"] == 1
    assert {"divergence", "reference_drift", "inner_accuracy"} <= names(summary)
    found = load_run(game_run.parent / "run").diagnoses
    assert [d.action for d in found if d.name == "divergence"] == ["stop"]


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_gradient_that_is_no_number(
    game_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, action: str
) -> None:
    play(monkeypatch, ORDERED)
    options = [*GAME, PAGE, "training.learning_rate=1e30", f"diagnostics.divergence={action}"]
    status = main(["run", str(game_run), *options])
    run = game_run.parent / "run"
    assert not (run / "iterations/0001/model").exists()
    if action == "stop":
        assert status == 2 and "gradient norm of step" in capsys.readouterr().err
        return
    summary = json.loads((run / "summary.json").read_text())
    assert status == 3 and summary["result"] == 0
    assert summary["ended"]["by"] == "divergence" and "gradient norm" in summary["ended"]["text"]
    assert "Ended by a diagnostic" in (run / "report.html").read_text()


def test_steps_that_are_too_small_are_slow(game_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, ORDERED)
    options = [*GAME, "training.learning_rate=1e-9", "diagnostics.slow_window=2"]
    summary = run_all(load_config(game_run, options))
    assert names(summary) == {"slow_convergence"}


@pytest.mark.slow
def test_a_cyclic_game_without_regularisation_cycles(
    game_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rock, paper, scissors with ipo and a reference that moves at every iteration.

    The policy goes round in 8 to 12 iterations. Seven seeds of ten are found within 12 of them, so
    that all of these five are missed, on some other CPU, with a probability of 0.2 %.
    """
    play(monkeypatch, CYCLIC)
    options = [*GAME, "algorithm.prox=ipo", "algorithm.eta=0.25", "algorithm.iterations=12",
               "training.learning_rate=5e-3", "training.num_train_epochs=2"]  # fmt: skip
    for seed in (1, 2, 3, 5, 0):
        place = f"output_dir={game_run.parent / f'run-{seed}'}"
        if "cycling" in names(run_all(load_config(game_run, [*options, f"seed={seed}", place]))):
            return
    pytest.fail("none of the seeds comes round")


def test_only_some_iterates_are_evaluated(game_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, ORDERED)
    options = [*GAME, "algorithm.iterations=3", "evaluation.interval=2"]
    summary = run_all(load_config(game_run, options))
    folders = game_run.parent / "run/iterations"
    assert [t for t in range(4) if (folders / f"{t:04d}/evaluation.json").is_file()] == [0, 2, 3]
    evaluation = json.loads((folders / "0003/evaluation.json").read_text())
    assert set(evaluation["win_rates"]) == {"0", "2"} and summary["result"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["diagnostics.cycling=explode"], "is not one of off, warn, stop, rollback"),
        (["diagnostics.cycling=off", "diagnostics.cycling_return=0.3"], "cycling is off"),
        (["diagnostics.slow_window=0"], "slow_window: 0 is too small"),
        (["evaluation.interval=0"], "evaluation.interval: 0 is too small"),
    ],
)
def test_bad_options(tiny_run: Path, options: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_config(tiny_run, options)


def test_off_is_no_boolean(tiny_run: Path) -> None:
    """YAML 1.1 reads `off` as false."""
    assert load_config(tiny_run, ["diagnostics.cycling=off"]).diagnostics.cycling == "off"
