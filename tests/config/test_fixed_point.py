"""Which configurations are said to end at another game's Nash policy, and where it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from comal_fast.config import load_config
from comal_fast.config.fixed_point import other_game
from comal_fast.config.schema import build
from comal_fast.loop import open_run, run_all
from comal_fast.report import write_report

ROOT = Path(__file__).resolve().parents[2]
NASH = [
    "configs/demo.yaml",
    "configs/llama3-8b-1gpu.yaml",
    "configs/llama3-8b-24gb.yaml",
    "configs/llama3-8b-lora.yaml",
    "configs/sweep.yaml",
    "configs/human.yaml",
    "configs/pairs.yaml",
    "configs/evidence/people.yaml",
    *(f"configs/lm-game/{name}.yaml" for name in ("inpo", "ipo", "dpo", "rebel", "cross-fit")),
]


def config(**groups: dict) -> object:
    return build({"model": {"name_or_path": "none"}, **groups})


@pytest.mark.parametrize("name", NASH)
def test_shipped_configurations_end_at_nash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert other_game(load_config(ROOT / name)) is None


@pytest.mark.parametrize("name", ["paper/llama3-8b", "paper/qwen2.5-7b", "lm-game/majority"])
def test_the_authors_settings_end_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "majority's game" in (other_game(load_config(ROOT / f"configs/{name}.yaml")) or "")


@pytest.mark.parametrize("prox", ["inpo", "ipo", "dpo", "sppo", "dro", "rebel"])
def test_the_defaults_of_every_prox_end_at_nash(prox: str) -> None:
    assert other_game(config(algorithm={"prox": prox})) is None


@pytest.mark.parametrize(
    ("algorithm", "pairing", "words"),
    [
        ({}, {"labels": "hard"}, "majority's game"),
        ({}, {"labels": "hard", "strategy": "best_worst"}, "majority's game"),
        ({}, {"strategy": "best_worst"}, None),
        ({}, {"strategy": "best_second", "labels": "sampled"}, None),
        ({}, {"strategy": "best_worst", "target": "label"}, "pairing.target=cross_fit or"),
        ({}, {"strategy": "best_worst", "target": "win_rate"}, "near the Nash policy"),
        ({}, {"strategy": "all", "target": "win_rate"}, None),
        ({}, {"strategy": "best_worst", "soft_labels": True}, "on their own labels"),
        ({"prox": "dpo"}, {"strategy": "best_worst"}, "pairing.strategy=all keeps it"),
        ({"prox": "rebel"}, {"strategy": "best_second"}, None),
        ({"prox": "rebel"}, {"strategy": "best_second", "target": "win_rate"}, "near the Nash"),
    ],
)
def test_what_moves_the_fixed_point(algorithm: dict, pairing: dict, words: str | None) -> None:
    found = other_game(config(algorithm=algorithm, pairing=pairing))
    assert (found is None) == (words is None)
    assert words is None or words in str(found)


def test_two_samples_make_one_pair_that_nobody_chose() -> None:
    made = config(pairing={"strategy": "best_worst"}, generation={"num_generations": 2})
    assert other_game(made) is None


def test_it_is_said_at_the_start_and_in_the_report(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = load_config(tiny_run, ["pairing.labels=hard", "algorithm.iterations=1"])
    run_all(hard)
    assert "pairing.labels=hard counts who is preferred" in capsys.readouterr().out
    page = Path(write_report(Path(hard.output_dir))).read_text()
    assert "pairing.labels=hard counts who is preferred" in page
    soft = load_config(tiny_run, ["algorithm.iterations=1", f"output_dir={tiny_run.parent / 'b'}"])
    run_all(soft)
    assert "fixed point" not in capsys.readouterr().out
    with open_run(soft) as context:
        assert "fixed point is" not in Path(write_report(context.directory.path)).read_text()
