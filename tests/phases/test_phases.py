"""Phases as verbs: inputs, artefacts, keys; what the numbers in them are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.context import Context
from comal_fast.generation.transformers import TransformersEngine
from comal_fast.loop import run_all
from comal_fast.model.load import load_model, load_tokenizer
from comal_fast.model.logps import response_logps
from comal_fast.phases.logps import prompt_responses
from comal_fast.phases.pair import choose_pairs
from comal_fast.store.directory import PHASES
from comal_kernels.packing import PromptResponse

P = np.array(
    [[0.5, 0.9, 0.4, 0.5], [0.1, 0.5, 0.7, 0.5], [0.6, 0.3, 0.5, 0.9], [0.5, 0.5, 0.1, 0.5]]
)


@pytest.mark.parametrize(
    ("strategy", "pairs"),
    [  # mean win rates: .6, .433, .6, .367; ties keep the order
        ("best_worst", []),
        ("best_second", [(2, 0)]),
        ("all", [(2, 0), (0, 1), (1, 2), (2, 3)]),
    ],
)
def test_choose_pairs(strategy: str, pairs: list[tuple[int, int]]) -> None:
    """0 against 3 is undecided: no pair; of best and second, the one that P prefers is chosen."""
    assert sorted(choose_pairs(P, strategy)) == sorted(pairs)


def test_verbs_one_by_one_equal_run(tiny_run: Path, tmp_path: Path) -> None:
    whole, steps = tmp_path / "whole", tmp_path / "steps"
    hard = "pairing.labels=hard"
    run_all(load_config(tiny_run, [f"output_dir={whole}", "evaluation.report=true", hard]))
    arguments = [str(tiny_run), f"output_dir={steps}", hard]
    assert main(["evaluate", *arguments, "--iteration", "0"]) == 0
    for iteration in ("1", "2"):
        for phase in PHASES:
            assert main([phase, *arguments, "--iteration", iteration]) == 0
    for name in ("samples.parquet", "judgments.parquet", "pairs.parquet", "logps.parquet"):
        tables = [pq.read_table(d / "iterations/0002" / name) for d in (whole, steps)]
        assert tables[0].equals(tables[1]), name
    weights = [(d / "iterations/0002/model/model.safetensors").read_bytes() for d in (whole, steps)]
    assert weights[0] == weights[1]

    samples = pq.read_table(whole / "iterations/0001/samples.parquet").to_pylist()
    assert len(samples) == 15 and all(1 <= len(s["response_ids"]) <= 8 for s in samples)
    pairs = pq.read_table(whole / "iterations/0001/pairs.parquet").to_pylist()
    cached = pq.read_table(whole / "iterations/0002/logps.parquet").to_pylist()
    used = [row for row in cached if row["ref_logp"] is not None]
    assert pairs and all(p["preference"] > 0.5 for p in pairs)
    # ref_update_interval is 2: in iteration 2 the reference is still π_0, the last iterate is π_1
    assert used and all(row["ref_logp"] != row["last_logp"] for row in used)
    losses = [
        row["loss"]
        for row in map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
        if row["phase"] == "train" and row["iteration"] == 1
    ]
    assert losses[0] == pytest.approx(100, rel=1e-3)  # (1/2η)², the margin being zero at first
    assert losses[-1] < losses[0]
    summary = json.loads((whole / "summary.json").read_text())
    assert set(summary) >= {"win_rate", "cycle_rate", "seconds", "seed", "versions"}
    assert set(summary["win_rate"]) == {"mean", "ci95", "n_prompts"}
    assert (whole / "report.html").is_file()


def test_change_of_options_redoes_what_depends_on_them(tiny_run: Path) -> None:
    run_all(load_config(tiny_run))
    context = Context(load_config(tiny_run))
    names = ("samples.parquet", "judgments.parquet", "pairs.parquet", "model")
    files = {n: context.directory.iteration(1).path / n for n in names}
    before = {n: f.stat().st_mtime_ns for n, f in files.items()}
    run_all(load_config(tiny_run, ["pairing.strategy=best_worst"]))
    changed = {n for n, f in files.items() if f.stat().st_mtime_ns != before[n]}
    assert changed == {"pairs.parquet", "model"}


def test_logps_follow_the_reference(tiny_run: Path) -> None:
    """After the reference moved, its cached log-probs are those of the new reference."""
    config = load_config(tiny_run, ["algorithm.ref_update_interval=1"])
    run_all(config)
    rows = pq.read_table(Path(config.output_dir) / "iterations/0002/logps.parquet").to_pylist()
    used = [row for row in rows if row["ref_logp"] is not None]
    assert used and all(row["ref_logp"] == row["last_logp"] for row in used)


@pytest.mark.parametrize("prox", ["inpo", "rebel"])
def test_a_mean_of_iterates_stands_in_for_the_last(tiny_run: Path, prox: str) -> None:
    """Step 2 of onpo: its cached log-probs, and the loss at first, by what is in the run."""
    options = ["algorithm.iterations=3", f"algorithm.prox={prox}", "training.num_train_epochs=1"]
    config = load_config(tiny_run, [*options, "algorithm.method=onpo", "algorithm.history=2"])
    run_all(config)
    context = Context(config)
    folder = context.directory.iteration(3)
    rows = [row for row in folder.logps.read().to_pylist() if row["ref_logp"] is not None]
    used = [i for i, row in enumerate(folder.logps.read().to_pylist()) if row["ref_logp"]]
    sequences = prompt_responses(folder.samples.read(), used)
    tokens = config.training.max_tokens_per_microbatch
    now, before = (
        response_logps(context.policies.load(t), sequences, max_tokens=tokens) for t in (2, 1)
    )
    ratio = (1 - 1 / 3) / (2 - 1 / 3)
    mean = (1 - ratio) * now + ratio * before
    assert np.abs(now - before).max() > 1e-4
    np.testing.assert_allclose([row["last_logp"] for row in rows], mean, atol=2e-4)
    metrics = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    means = {r["iteration"]: r for r in map(json.loads, metrics) if r["phase"] == "logps"}
    reference = np.array([row["ref_logp"] for row in rows])
    assert means[3]["comal/kl_to_reference"] == pytest.approx((now - reference).mean(), abs=1e-3)


def test_a_method_is_in_the_keys_of_what_it_changes(tiny_run: Path) -> None:
    run_all(load_config(tiny_run))
    context = Context(load_config(tiny_run))
    names = ("pairs.parquet", "logps.parquet", "model")
    files = {n: context.directory.iteration(2).path / n for n in names}
    before = {n: f.stat().st_mtime_ns for n, f in files.items()}
    run_all(load_config(tiny_run, ["algorithm.method=mirror"]))
    assert {n: f.stat().st_mtime_ns for n, f in files.items()} == before
    run_all(load_config(tiny_run, ["algorithm.method=apo"]))
    assert files["model"].stat().st_mtime_ns != before["model"]


def test_sampling_is_seeded_and_padding_is_invisible(tiny_run: Path) -> None:
    config = load_config(tiny_run)
    model, tokenizer = load_model(config.model), load_tokenizer(config.model)
    prompts = [[5, 6, 7], [9] * 17, [30, 31]]

    def sample(chosen: list[list[int]], seed: str) -> dict:
        batches = TransformersEngine(config.generation, model, tokenizer).sample(chosen, 4, seed)
        return {i: r for batch in batches for i, r in batch.items()}

    assert sample(prompts, "a") == sample(prompts, "a") != sample(prompts, "b")
    for responses in sample(prompts, "a").values():
        assert len(responses) == 4
        assert all(r.finished == (r.ids[-1] == 0) and 0 not in r.ids[:-1] for r in responses)


def test_sampled_tokens_have_finite_logps(tiny_run: Path) -> None:
    config = load_config(tiny_run)
    model = load_model(config.model)
    logps = response_logps(model, [PromptResponse([5], [0])], max_tokens=1)
    assert np.isfinite(logps).all() and (logps < 0).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.yaml"], "none.yaml: no such file"),
        (["run", "CONFIG", "generation.num_generations=1"], "num_generations: 1 is too small"),
        (["run", "CONFIG", "data.max_lenght=9"], "nearest is data.max_length"),
        (["run", "CONFIG", "data.prompts=none.jsonl"], "none.jsonl: no such file"),
        (["run", "CONFIG", "data.prompts=BROKEN"], "line 2: malformed JSON"),
        (["run", "CONFIG", "data.prompts=BLANK"], "line 1, field prompt: empty prompt"),
        (["run", "CONFIG", "data.prompts=LONG"], "exceeds data.max_length=128"),
        (["run", "CONFIG", "data.eval_prompts=14"], "data.eval_prompts: 14"),
        (["run", "CONFIG", "model.name_or_path=./none"], "./none: no such folder"),
        (["run", "CONFIG", "model.name_or_path=package:none"], "package none is not installed"),
        (["train", "CONFIG", "--iteration", "1"], "has not run"),
        (["generate", "CONFIG", "--iteration", "3"], "outside 1 … 2"),
        (["report", "none"], "none"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tiny_run: Path, capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    files = {
        "BROKEN": '{"prompt": "x"}\n{"prompt": \n',
        "BLANK": '{"prompt": " "}\n',
        "LONG": json.dumps({"prompt": "word " * 100}) + "\n",
    }
    for name, text in files.items():
        (tiny_run.parent / name).write_text(text)
        arguments = [a.replace(name, str(tiny_run.parent / name)) for a in arguments]
    arguments = [a.replace("CONFIG", str(tiny_run)) for a in arguments]
    assert main(arguments) == 2
    captured = capsys.readouterr().err.strip()
    assert words in captured and "\n" not in captured and captured.startswith("comal-fast: error:")
    assert not (tiny_run.parent / "run" / "iterations").exists()


def test_options_may_stand_anywhere(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["train", str(tiny_run), "--iteration", "1"]
    assert main([*arguments, "data.max_lenght=9"]) == 2
    assert "nearest is data.max_length" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "stray"])
    assert "unrecognized arguments: stray" in capsys.readouterr().err


def test_two_runs_in_one_directory(tiny_run: Path, capsys: pytest.CaptureFixture) -> None:
    import fcntl

    folder = tiny_run.parent / "run"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["run", str(tiny_run)]) == 2
    assert "another comal-fast is at work" in capsys.readouterr().err


def test_imports_stay_light() -> None:
    """comal_kernels imports no transformers; the command line no torch before it is needed."""
    checks = {
        "import comal_kernels": ("transformers", "triton"),
        "import comal_fast": ("torch", "transformers"),
        "import comal_fast.cli": ("torch", "transformers"),
    }
    for code, absent in checks.items():
        test = f"{code}; import sys; print([m for m in {absent!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", test], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", (code, done.stdout, done.stderr)
