"""A game a prompt: the file, the oracle, the model, and a study of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.errors import InputError
from comal_fast.game.nash import duality_gap, is_unique, nash_policy
from comal_fast.game.prompted import load_games
from comal_fast.lm_game.games import EMPIRICAL, many_games, to_jsonl
from comal_fast.lm_game.measure import measure
from comal_fast.lm_game.study import Study, read
from comal_fast.lm_game.study_tables import conclusions, markdown
from comal_fast.oracles import Comparison, Message, make_oracle

REPO = Path(__file__).resolve().parents[2]
SHIPPED = REPO / "configs/lm-game/many/games.jsonl"


def test_the_shipped_games() -> None:
    """200 prompts, each with a game of its own of 3 to 8 responses and one Nash policy."""
    games = load_games(SHIPPED)
    rows = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
    train = [games[row["prompt"]] for row in rows if row["split"] == "train"]
    assert len(train) == 200 and len(rows) == 250
    assert {g.family for g in train} == {"random", "cyclic", "bradley-terry", "blotto", EMPIRICAL}
    assert {len(g.game.names) for g in train} == set(range(3, 9))
    for found in train:
        assert is_unique(found.game.matrix, nash_policy(found.game.matrix))
        assert found.start.min() >= 0.05 - 1e-9
    assert len({json.dumps(g.game.matrix.tolist()) for g in train}) > 190
    for row in rows[200:]:  # a paraphrase has the game of a training prompt
        original = games[row["prompt"].removeprefix("and ")]
        np.testing.assert_array_equal(games[row["prompt"]].game.matrix, original.game.matrix)
        assert row["split"] == "heldout"


def test_games_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    assert to_jsonl(many_games(12, 3, 5)) == to_jsonl(many_games(12, 3, 5))
    assert to_jsonl(many_games(12, 3, 5)) != to_jsonl(many_games(12, 3, 6))
    folder = tmp_path / "run/iterations/0001"
    folder.mkdir(parents=True)
    matrices = []
    for seed in range(6):  # judged responses to six prompts
        upper = np.triu(np.random.default_rng(seed).random((5, 5)), 1)
        matrices.append((upper + np.tril(1 - upper.T, -1) + np.eye(5) / 2).ravel().tolist())
    pq.write_table(pa.table({"matrix": matrices}), folder / "judgments.parquet")
    rows = many_games(10, 2, 0, [tmp_path / "run"])
    empirical = [row for row in rows[:10] if row["family"] == EMPIRICAL]
    assert len(empirical) == 2
    entries = np.round(np.ravel(matrices), 3)
    assert all(np.isin(np.array(r["matrix"]).ravel(), [*entries, 0.5]).all() for r in empirical)
    with pytest.raises(InputError, match="not enough judged prompts"):
        many_games(100, 2, 0, [tmp_path / "run"])


def test_the_oracle_asks_the_prompt(tiny_run: Path) -> None:
    tiny_run.write_text(
        tiny_run.read_text().replace(
            "oracle: {target_words: 2}", f"oracle: {{name: matrix, game: {SHIPPED}}}"
        )
    )
    oracle = make_oracle(load_config(tiny_run).oracle)
    games = list(load_games(SHIPPED).items())[:5]
    asked = [
        Comparison((Message("user", prompt),), list(g.game.names), ["?", *g.game.names])
        for prompt, g in games
    ]
    for (_, known), found in zip(games, oracle.compare(asked), strict=True):
        np.testing.assert_array_equal(found[:, 1:], known.game.matrix)
        assert (found[:, 0] == 1).all()
    with pytest.raises(InputError, match=r"oracle\.game: no game for the prompt 'unheard of'"):
        list(oracle.compare([Comparison((Message("user", "unheard of"),), ["a"], ["b"])]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"line 2: malformed JSON"),
        ('{"names": ["a", "b"]}', r"line 2: expected an object with the text `prompt`"),
        ('{"prompt": "p"}', r"line 2: 'names' is missing"),
        ('{"prompt": "p", "names": ["a", "b"]}', r"line 2: the key 'matrix' is missing"),
        ('{"prompt": "p", "names": ["a"], "matrix": [[0.5, 1], [0, 0.5]]}', "1 entries for 2"),
        ('{"prompt": "q?", "names": ["a", "b"], "matrix": [[0.5, 1], [0, 0.5]]}', "stands there"),
    ],
)
def test_bad_files(line: str, words: str, tmp_path: Path) -> None:
    good = '{"prompt": "q?", "names": ["a", "b"], "matrix": [[0.5, 1], [0, 0.5]]}'
    (tmp_path / "games.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=words):
        load_games(tmp_path / "games.jsonl")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of the shipped configurations: six games, a model of this test session."""
    folder = tmp_path_factory.mktemp("many")
    file = folder / "games.jsonl"
    file.write_bytes(to_jsonl(many_games(6, 2, 1)))
    overrides = [
        f"model.name_or_path={folder / 'model'}",
        f"data.prompts={file}",
        f"oracle.game={file}",
        "data.eval_prompts=2",
        "algorithm.iterations=1",
        "training.num_train_epochs=12",
    ]
    config = str(REPO / "configs/lm-game/many/inpo.yaml")
    assert main(["lm-game", "make", config, *overrides]) == 0
    return overrides


@pytest.mark.slow
def test_a_study(played: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two configurations, two seeds: the record says what the runs hold; then it is read again."""
    files = []
    for name in ("inpo", "sppo-plain"):
        files.append(tmp_path / f"{name}.yaml")
        shipped = REPO / f"configs/lm-game/many/{name}.yaml"
        files[-1].write_text(f"base: {shipped}\noutput_dir: {tmp_path / 'runs' / name}\n")
    out = {k: tmp_path / f"out.{k}" for k in ("json.gz", "md", "png")}
    options = [
        "--record", str(out["json.gz"]), "--markdown", str(out["md"]), "--plot", str(out["png"]),
    ]  # fmt: skip
    command = ["lm-game", "study", *map(str, files), *played, "--seeds", "2", *options]
    assert main(command) == 0
    study = read(out["json.gz"])
    assert study.names == ["inpo", "sppo-plain"]
    assert study.held_out.sum() == 2 and len(study.held_out) == 8
    config = load_config(
        files[0], [*played, f"output_dir={tmp_path / 'runs/inpo/seed-1'}", "seed=1"]
    )
    found = measure(config)
    for i, prompt in enumerate(found.prompts):
        place = study.content["prompts"].index(prompt)
        played_game = found.games[i].game
        policy = found.policies[1, i, : len(played_game.names)]
        assert study.values("inpo", "gap")[1, place] == pytest.approx(found.gap[1, i], abs=1e-6)
        assert study.values("inpo", "leak")[1, place] == pytest.approx(1 - policy.sum(), abs=2e-6)
        start = found.policies[0, i, : len(played_game.names)]
        np.testing.assert_allclose(start, found.games[i].start, atol=0.1)
        gap = duality_gap(played_game.matrix, policy / policy.sum())
        assert found.gap[1, i] == pytest.approx(gap, abs=2.1 * (1 - policy.sum()) + 1e-9)
    assert study.curve("inpo", False).shape == (2, 2)
    text = out["md"].read_text()
    assert "`sppo-plain`" in text and "held-out prompts" in text
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    again = tmp_path / "again.md"
    assert main(["lm-game", "study", str(out["json.gz"]), "--markdown", str(again)]) == 0
    assert again.read_text() == text


def made(gaps: dict[str, list[list[float]]], held_out: list[bool]) -> Study:
    runs: list[dict[str, Any]] = [
        {"name": name, "gap": gap, "total_variation": gap, "leak": gap}
        for name, gap in gaps.items()
    ]
    return Study({"runs": runs, "held_out": held_out, "families": ["f"] * len(held_out)})


def test_conclusions_say_what_the_intervals_carry() -> None:
    generator = np.random.default_rng(0)
    base = generator.random((5, 40)) + 1
    study = made(
        {
            "less": (base - 0.5).tolist(),
            "same": (base + 0.2 * generator.standard_normal((5, 40))).tolist(),
            "base": base.tolist(),
        },
        [False] * 30 + [True] * 10,
    )
    (text,) = conclusions(study, "base")
    less, same = text.splitlines()
    assert less.count("below on") == 2 and "−0.500" in less
    assert same.count("not shown to differ on") == 2
    assert markdown(study, "base").count("| `less` |") == 2
    with pytest.raises(InputError, match="no such run"):
        conclusions(study, "nobody")


def test_bad_arguments(played: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = str(REPO / "configs/lm-game/many/inpo.yaml")
    (tmp_path / "no.json").write_text("{}")
    for arguments, words in (
        (["make", path, *played, "--start", "0.5,0.5"], "--start: no effect"),
        (["make", path, *played, "--hidden", "100"], "--hidden 100: expected a multiple of 64"),
        (["games", str(tmp_path / "a.json")], "the name must end in .jsonl"),
        (["games", str(tmp_path / "a.jsonl"), "--held-out", "300"], "at most as many held out"),
        (["games", str(tmp_path / "a.jsonl"), "--empirical", str(tmp_path)], "no judged responses"),
        (["study", path, "--seeds", "1"], "--seeds 1: an interval over seeds takes 2 or more"),
        (["study", str(tmp_path / "no.json")], "no record of `comal-fast lm-game study`"),
        (["study", path, path, *played], "two configurations have a folder of the same name"),
    ):
        assert main(["lm-game", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert words in error and "\n" not in error
    assert not (tmp_path / "a.jsonl").exists()
