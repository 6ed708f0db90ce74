"""Runs on pairs that people judged: nothing sampled, nothing asked; and exported pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.config.schema import DataConfig
from comal_fast.data.pairs import load_pairs
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.plan.search import Workload
from comal_fast.report import write_report
from comal_fast.store.directory import RunDirectory
from resume import comparable, start

WORDS = ["red", "sea", "owl", "ice", "sun", "oak", "fog", "ash", "elm", "bee", "cat", "dog"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """The answer in capitals is chosen."""
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Say {word}.", "chosen": word.upper(), "rejected": word} for word in WORDS]
    rows += [{"prompt": "Say red.", "chosen": "RED!", "rejected": "RED"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def config(pairs: Path, tiny_folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "pairs.yaml"
    file.write_text(
        f"""
output_dir: {tmp_path / "run"}
model: {{name_or_path: {tiny_folder}, device: cpu}}
data: {{pairs: {pairs}, eval_prompts: 4, max_length: 64}}
algorithm: {{prox: dpo, beta: 0.1}}
training: {{learning_rate: 3.0e-3, num_train_epochs: 6, train_batch_size: 4, save_steps: 2,
            max_tokens_per_microbatch: 200}}
evaluation: {{bootstrap: 200, report: false}}
"""
    )
    return file


@pytest.mark.parametrize("prox", ["dpo", "ipo", "inpo", "rebel"])
def test_it_learns_what_people_chose(prox: str, config: Path, tmp_path: Path) -> None:
    """On words it was not trained on, and says so everywhere."""
    eta = "" if prox == "dpo" else ", eta: 0.05"
    summary = run_all(load_config(config, [f"algorithm={{prox: {prox}{eta}}}"]))
    directory = RunDirectory(tmp_path / "run")
    found = directory.iteration(1).pair_evaluation.read()
    assert summary["pairs"] == found and found["pairs"] in (4, 5) and found["prompts"] == 4
    assert found["accuracy"]["mean"] > 0.7 and found["margin"]["mean"] > 0
    assert summary["win_rate"] is None and summary["cycle_rate"] is None
    assert {row["phase"] for row in directory.rows()} >= {"pair", "logps", "train", "evaluate"}
    assert not directory.iteration(1).judgments.exists() and not directory.sampled()
    page = write_report(directory.path).read_text()
    assert f"On {found['pairs']} held-out pairs" in page and "no win rate" in page
    again = run_all(load_config(directory.config))  # what a run wrote down is a configuration
    assert again["pairs"] == found


def test_first_step_is_plain_dpo(config: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """Loss of the first step against transformers, padded batches and the formula."""
    run_all(load_config(config, ["training.train_batch_size=99", "training.num_train_epochs=1"]))
    directory = RunDirectory(tmp_path / "run")
    samples, table = (getattr(directory.iteration(1), n).read() for n in ("samples", "pairs"))
    rows = [r for r in directory.rows() if r["phase"] == "train"]
    from transformers import AutoModelForCausalLM

    def logps(folder: Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        values = []
        for prompt, response in zip(
            samples["prompt_ids"].to_pylist(), samples["response_ids"].to_pylist(), strict=True
        ):
            ids = torch.tensor([[*prompt, *response]])
            with torch.no_grad():
                every = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            picked = every.gather(1, ids[0, 1:, None])[:, 0]
            values.append(picked[len(prompt) - 1 :].sum())
        return torch.stack(values)

    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # the policy is the reference
    gained = logps(directory.iteration(1).model.path) - logps(tiny_folder)
    chosen, rejected = (torch.tensor(table[c].to_pylist()) for c in ("chosen", "rejected"))
    held = {w for w in WORDS} - {t.split()[1][:-1] for t in samples["prompt"].to_pylist()}
    assert len(held) == 4
    assert ((gained[chosen] - gained[rejected]) > 0).float().mean() > 0.7


@pytest.mark.slow
def test_killed_in_each_phase_ends_the_same(config: Path, tmp_path: Path) -> None:
    calm = tmp_path / "calm"
    assert start(config, calm) == 0
    weights = load_file(calm / "iterations/0001/model/model.safetensors")
    for target, count in (
        ("comal_fast.phases.given:_tables", 1),
        ("comal_fast.phases.logps:joint_logps", 1),
        ("comal_fast.phases.train:Trainer.optimizer_step", 5),
        ("comal_fast.phases.given:held_out", 1),
    ):
        killed = tmp_path / target.rpartition(":")[2]
        assert start(config, killed, target, count) == -9
        assert start(config, killed) == 0
        ours = load_file(killed / "iterations/0001/model/model.safetensors")
        assert all(torch.equal(ours[name], x) for name, x in weights.items())
        assert comparable(killed) == comparable(calm)


def test_with_an_oracle_there_are_win_rates_too(config: Path, tmp_path: Path) -> None:
    given = ["oracle={name: criteria, target_words: 2}", "generation={max_new_tokens: 8}"]
    summary = run_all(load_config(config, given))
    assert summary["win_rate"]["n_prompts"] == 4 and summary["pairs"]["prompts"] == 4
    directory = RunDirectory(tmp_path / "run")
    assert directory.sampled() == [0, 1] and not directory.iteration(1).judgments.exists()
    assert main(["compare", str(directory)]) == 0


def test_soft_labels(config: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    rows = [row | {"probability": 0.2} for row in rows]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_all(load_config(config, ["pairing.labels=hard"]))
    assert "13 pairs say how sure they are; pairing.labels=soft" in capsys.readouterr().out
    loaded = load_config(config)
    run_all(loaded)
    table = RunDirectory(loaded.output_dir).iteration(1).pairs.read()
    np.testing.assert_allclose(table["preference"].to_numpy(), 0.8)  # the other one is likelier
    samples = RunDirectory(loaded.output_dir).iteration(1).samples.read()
    chosen = samples["response"].take(table["chosen"])
    assert sum(text.as_py().islower() for text in chosen) >= 7


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["algorithm.iterations=2"], "algorithm.iterations: 2 with data.pairs"),
        (["algorithm={prox: sppo}"], "algorithm.prox: sppo reads win rates"),
        (["data.prompts=builtin"], "data.prompts: data.pairs stands in its place"),
        (["pairing.strategy=all"], "pairing.strategy: people chose the pairs"),
        (["generation.max_new_tokens=9"], "generation.max_new_tokens: nothing is sampled"),
        (["data.pairs=null", "oracle={name: none}"], "oracle.name: none, so nobody judges"),
        (["data.pairs=none.jsonl"], "data.pairs none.jsonl: no such file"),
    ],
)
def test_what_does_not_go_together(given: list[str], words: str, config: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        run_all(load_config(config, given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("phase", ["generate", "judge"])
def test_phases_that_are_not(
    phase: str, config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([phase, str(config)]) == 2
    assert f"{phase}: people judged data.pairs already" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_needs_win_rates(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(config), "--iteration", "0"]) == 2
    assert "nothing to evaluate of π_0" in capsys.readouterr().err
    assert main(["sweep", str(config), "--grid", "beta=0.1,0.2"]) == 2
    assert "a sweep compares win rates" in capsys.readouterr().err


def test_a_plan_counts_no_sampling(config: Path) -> None:
    work = Workload.of(load_config(config))
    assert work.generations == work.evaluations == 0 and work.longest == 127
    for more in ([], ["oracle={name: criteria}", "generation={max_new_tokens: 8}"]):
        assert main(["plan", str(config), *more, "--gpu-memory", "80GiB"]) == 0


def test_export_and_back(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's judged pairs, by every suffix; then trained on as data.pairs."""
    config = load_config(tiny_run, ["algorithm.iterations=1", "pairing.soft_labels=true"])
    run_all(config)
    table = RunDirectory(config.output_dir).iteration(1).pairs.read()
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        assert main(["export", "pairs", config.output_dir, str(tmp_path / name)]) == 0
    loaded = [load_pairs(DataConfig(), str(tmp_path / n)) for n in ("a.jsonl", "b.jsonl.gz")]
    assert loaded[0].pairs and len(loaded[0].pairs) <= table.num_rows
    assert [p.chosen for p in loaded[0].pairs] == [p.chosen for p in loaded[1].pairs]
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert set(row) == {"prompt", "chosen", "rejected", "probability", "iteration"}
    assert [m["role"] for m in row["prompt"] + row["chosen"]] == ["user", "assistant"]
    assert pq.read_table(tmp_path / "c.parquet").num_rows >= len(loaded[0].pairs)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    decided = [row for row in rows if row["probability"] != 0.5]
    (tmp_path / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in decided))
    given = [f"data.pairs={tmp_path / 'e.jsonl'}", "data.eval_prompts=2", "algorithm.prox=dpo"]
    text = "".join(
        line + "\n"
        for line in tiny_run.read_text().splitlines()
        if not line.startswith(("data:", "generation:", "oracle:", "pairing:", "algorithm:"))
    )
    (tmp_path / "again.yaml").write_text(text)
    again = load_config(tmp_path / "again.yaml", [*given, f"output_dir={tmp_path / 'again'}"])
    assert run_all(again)["pairs"]["prompts"] == 2

    def refused(*arguments: str) -> str:
        assert main(["export", "pairs", *arguments]) == 2
        return capsys.readouterr().err

    capsys.readouterr()
    assert "give --force" in refused(config.output_dir, str(tmp_path / "a.jsonl"))
    assert "must end in .jsonl" in refused(config.output_dir, str(tmp_path / "a.txt"))
    assert "no pairs of 7; there are 1" in refused(
        config.output_dir, str(tmp_path / "d.jsonl"), "--iteration", "7"
    )
    assert "no such run directory" in refused(str(tmp_path / "none"), str(tmp_path / "d.jsonl"))
