"""A language model with a known equilibrium, and the whole trainer on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import root

from comal_fast.cli import main
from comal_fast.config import Config, load_config
from comal_fast.game import PAPER_START, mirror_step, paper_game
from comal_fast.game.preference import advantage
from comal_fast.lm_game.measure import Measured, measure
from comal_fast.loop import open_run, run_here
from comal_fast.model.load import load_model, load_tokenizer

REPO = Path(__file__).resolve().parents[2]
START = np.array(PAPER_START)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for the shipped configs: 12 of the prompts, and a model of this test session."""
    folder = tmp_path_factory.mktemp("lm-game")
    rows = (REPO / "configs/lm-game/prompts.jsonl").read_text().splitlines()
    (folder / "prompts.jsonl").write_text("\n".join([*rows[:10], *rows[-2:]]) + "\n")
    overrides = [
        f"model.name_or_path={folder / 'model'}",
        f"data.prompts={folder / 'prompts.jsonl'}",
        f"oracle.game={REPO / 'configs/lm-game/game.json'}",
        "data.eval_prompts=2",
    ]
    assert main(["lm-game", "make", str(REPO / "configs/lm-game/inpo.yaml"), *overrides]) == 0
    return overrides


def config_of(name: str, played: list[str], output: Path, *more: str) -> Config:
    return load_config(
        REPO / f"configs/lm-game/{name}.yaml", [*played, f"output_dir={output}", *more]
    )


def play(config: Config, iterations: int) -> Measured:
    """The phases that make the iterates, without evaluations."""
    with open_run(config) as context:
        for iteration in range(1, iterations + 1):
            for phase in ("generate", "judge", "pair", "logps", "train"):
                run_here(context, phase, iteration)
    return measure(config)


def test_the_model_starts_where_it_should(played: list[str], tmp_path: Path) -> None:
    """Its probabilities, by hand from whole logits."""
    config = config_of("inpo", played, tmp_path)
    model, tokenizer = load_model(config.model), load_tokenizer(config.model)
    names = paper_game_strings()
    assert len({len(tokenizer(name)["input_ids"]) for name in names}) == 3
    for prompt in ("Is a tomato a fruit?", "Does the key fit the door?"):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for name, wanted in zip(names, START, strict=True):
            ids = tokenizer(text)["input_ids"]
            probability = 1.0
            for token in [*tokenizer(name)["input_ids"], tokenizer.eos_token_id]:
                with torch.inference_mode():
                    probability *= model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token]
                ids.append(token)
            assert float(probability) == pytest.approx(wanted, abs=0.01)


def paper_game_strings() -> list[str]:
    content = json.loads((REPO / "configs/lm-game/game.json").read_text())
    assert content["matrix"] == paper_game().matrix.tolist()
    return content["names"]


@pytest.mark.slow
def test_made_twice_it_is_the_same_to_the_bit(played: list[str], tmp_path: Path) -> None:
    config = config_of("inpo", played, tmp_path)
    again = tmp_path / "again"
    path = str(REPO / "configs/lm-game/inpo.yaml")
    assert main(["lm-game", "make", path, *played, f"model.name_or_path={again}"]) == 0
    first = Path(config.model.name_or_path) / "model.safetensors"
    assert first.read_bytes() == (again / "model.safetensors").read_bytes()


def exact_step(config: Config) -> np.ndarray:
    """π_1 of the table, from START as reference and last iterate."""
    options = config.algorithm.model_dump()
    p, eta = paper_game().matrix, options.get("eta")
    if config.algorithm.prox != "dpo":
        return np.exp(mirror_step(np.log(START), np.log(START), advantage(p), eta, 0.0))
    beta = options.get("beta")

    def slope(f: np.ndarray) -> np.ndarray:  # of the logistic loss in the gains f of a and b
        gain = np.append(f, 0)
        return (((1 / (1 + np.exp(-beta * (gain[:, None] - gain)))) - p) @ START)[:2]

    tilted = START * np.exp(np.append(root(slope, np.zeros(2)).x, 0))
    return tilted / tilted.sum()


@pytest.mark.parametrize("prox", ["inpo", "ipo", "dpo", "sppo", "dro", "rebel"])
def test_one_iteration_is_one_step_of_the_game(
    prox: str, played: list[str], tmp_path: Path
) -> None:
    """320 samples: their noise, twice over, and what the fit leaves, are within 0.03."""
    config = config_of(
        prox, played, tmp_path, "algorithm.iterations=1", "training.num_train_epochs=16"
    )
    measured = play(config, 1)
    wanted = np.append(exact_step(config), 0.0)
    moved = np.abs(wanted[:-1] - START).sum() / 2
    away = np.abs(measured.policies[1].mean(axis=0) - wanted).sum() / 2
    assert moved > 0.08 and away <= 0.03


@pytest.mark.slow
@pytest.mark.nightly
def test_comal_reaches_nash_and_a_static_reference_does_not(
    played: list[str], tmp_path: Path
) -> None:
    """The static run goes on from a copy: until the reference first moves, the two are one."""
    moving, static = tmp_path / "moving", tmp_path / "static"
    play(config_of("inpo", played, moving), 10)
    shutil.copytree(moving, static)
    with_comal = play(config_of("inpo", played, moving), 20)
    without = play(config_of("static", played, static), 16)
    tv = with_comal.total_variation.mean(axis=1)
    assert tv[0] == pytest.approx(0.227, abs=0.01)
    assert tv[20] <= 0.05
    assert without.total_variation.mean(axis=1)[16] >= 0.08
    np.testing.assert_array_equal(with_comal.policies[:11], without.policies[:11])
    content = json.loads((moving / "lm_game.json").read_text())
    assert [row["total_variation"] for row in content["iterates"]] == tv.tolist()
    assert sum(content["iterates"][-1]["policy"]) == pytest.approx(1)


def test_bad_input(played: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(REPO / "configs/lm-game/inpo.yaml")
    taken = tmp_path / "taken"
    taken.mkdir()
    for arguments, words in (
        (["make", path, "--start", "1,2"], "--start: 2 entries, but the game has 3"),
        (["make", path, "--start", "a"], "--start a: expected numbers"),
        (["make", path, f"model.name_or_path={taken}"], "exists, and lm-game did not make it"),
        (["make", path, "generation.max_new_tokens=4"], "a response of the game has 12"),
        (["make", str(REPO / "configs/demo.yaml")], "lm-game needs oracle matrix"),
        (["measure", path, f"output_dir={tmp_path / 'none'}"], "no trained model in it"),
    ):
        given = (
            [*arguments[:2], *played, *arguments[2:]] if "demo" not in arguments[1] else arguments
        )
        assert main(["lm-game", *given]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error


@pytest.mark.slow
def test_a_sweep_reports_the_exact_gap(
    played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comal_fast.loop.write_report", lambda directory: directory)
    page = tmp_path / "page.md"
    grid = ["--grid", "tau_eta_ratio=0.2,1", "--markdown", str(page)]
    brief = ["algorithm.iterations=1", f"output_dir={tmp_path / 'sweep'}"]
    assert main(["sweep", str(REPO / "configs/lm-game/inpo.yaml"), *grid, *played, *brief]) == 0
    cells = json.loads((tmp_path / "sweep/sweep.json").read_text())["cells"]
    for cell in cells:
        folder = tmp_path / "sweep/cells" / cell["name"]
        last = json.loads((folder / "lm_game.json").read_text())["iterates"][-1]
        assert cell["duality_gap"]["mean"] == pytest.approx(last["duality_gap"])
        assert cell["total_variation"]["mean"] == pytest.approx(last["total_variation"])
        low, high = cell["duality_gap"]["ci95"]
        assert low <= last["duality_gap"] <= high
    text = page.read_text()
    assert "| duality gap | total variation from Nash |" in text
    assert "the duality gap is least at" in text


@pytest.mark.slow
def test_a_cell_that_is_rolled_back_to_where_it_began(
    played: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trained nothing, and is measured like the others; so is a cell by its configuration."""
    monkeypatch.setattr("comal_fast.loop.write_report", lambda directory: directory)
    given = [
        *played,
        "algorithm.iterations=1",
        "diagnostics.divergence=rollback",
        f"output_dir={tmp_path / 'sweep'}",
    ]
    grid = ["--grid", "learning_rate=0.001,1e30"]
    assert main(["sweep", str(REPO / "configs/lm-game/inpo.yaml"), *grid, *given]) == 0
    cells = json.loads((tmp_path / "sweep/sweep.json").read_text())["cells"]
    right, back = (cell["duality_gap"]["mean"] for cell in cells)
    start = json.loads((tmp_path / "sweep/cells" / cells[0]["name"] / "lm_game.json").read_text())
    assert back == pytest.approx(start["iterates"][0]["duality_gap"], rel=0.2)  # of fewer prompts
    assert right != back
    page = (tmp_path / "sweep/sweep.md").read_text()
    assert "Diagnostics fired in `learning_rate=1e30` (divergence)" in page


def test_a_configuration_in_a_folder_like_an_option(
    played: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tau=1" / "inpo.yaml"
    config.parent.mkdir()
    config.write_text(f"base: {REPO / 'configs/lm-game/inpo.yaml'}\n")
    given = [str(config), *played, f"output_dir={tmp_path / 'none'}"]
    assert main(["lm-game", "measure", *given]) == 2
    assert "none: no trained model in it" in capsys.readouterr().err
