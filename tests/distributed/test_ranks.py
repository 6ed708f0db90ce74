"""Two gloo ranks by torchrun do what one process does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import open_run, run_all, run_here
from forked import python
from launch import torchrun
from modules import load
from rewards import save_reward
from tiny import byte_tokenizer, tiny_model

HERE = Path(__file__).parent
KILLING = HERE.parent / "loop" / "resume_driver.py"
MODEL = Path("iterations/0001/model/model.safetensors")


steps = load(HERE / "steps_driver.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As torchrun sets it: the same order of summation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prepared(tiny_run: Path) -> Path:
    """A config file whose run directory holds iteration 1 up to its log-probs."""
    text = tiny_run.read_text()
    text = text.replace("learning_rate: 1.0e-3", "learning_rate: 1.0e-5")
    text = text.replace("prompts_per_iteration: 5", "prompts_per_iteration: 9")
    text = text.replace("train_batch_size: 2", "train_batch_size: 6")
    tiny_run.write_text(text)
    prepare(tiny_run)
    return tiny_run


@pytest.fixture
def lean(prepared: Path, tmp_path: Path) -> Path:
    """The same of a model with weights in whole 8-bit blocks, moments in host memory."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "wider"
    tiny_model(hidden_size=64, intermediate_size=256).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    text = prepared.read_text()
    text = text.replace(load_config(prepared).model.name_or_path, str(folder))
    prepared.write_text(
        text.replace("training: {", "training: {optimizer_state: 8bit, optimizer_offload: true, ")
    )
    prepare(prepared)
    return prepared


def prepare(config: Path) -> None:
    with open_run(load_config(config)) as context:
        for phase in ("generate", "judge", "pair", "logps"):
            run_here(context, phase, 1)


def gap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((x - theirs[name]).abs().max().item() for name, x in ours.items())


@pytest.mark.slow
def test_steps_equal_one_ranks(prepared: Path, tmp_path: Path) -> None:
    """Weights, loss, gradient norm and rewards of every case, float32."""
    out = tmp_path / "results.pt"
    done = torchrun(HERE / "steps_driver.py", prepared, out)
    assert done.returncode == 0, done.stderr
    results = torch.load(out)
    assert results.keys() == steps.CASES.keys()
    for case, (_, weights, rows) in results.items():
        before, expected, expected_rows = steps.train(case, prepared)
        moved = gap(expected, before)
        # another order of summation turns one 8-bit code into its neighbour here and there
        most = 0.1 * moved if "8bit" in case else min(1e-6, 0.02 * moved)
        assert gap(weights, expected) <= most, case
        far = [(x - expected[name]).abs() > 0.01 * moved for name, x in weights.items()]
        assert torch.cat([x.flatten() for x in far]).float().mean() < 1e-3, case
        for row, wanted in zip(rows, expected_rows, strict=True):
            assert row.keys() == wanted.keys()
            for name, value in wanted.items():
                if not name.startswith(("perf/", "mem/")):  # rewards: gains on log-probs of −40
                    assert row[name] == pytest.approx(value, rel=1e-4, abs=2e-5), (case, name)


@pytest.mark.slow
def test_run_writes_the_same_artefacts(prepared: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_all(load_config(prepared, [f"output_dir={one}"]))
    done = torchrun("-m", "comal_fast", "run", prepared, f"output_dir={two}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train π_1") == 1  # one rank speaks

    def files(run: Path) -> list[Path]:
        return sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file())

    assert files(one) == files(two)
    for name in files(one):
        if name.name in ("samples.parquet", "eval_samples.parquet", "judgments.parquet"):
            assert pq.read_table(one / name).equals(pq.read_table(two / name)), name
        if name.suffix == ".safetensors":
            assert gap(load_file(one / name), load_file(two / name)) <= 1e-6
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, two)
    ]
    assert [r.keys() for r in rows[0]] == [r.keys() for r in rows[1]]
    assert json.loads((two / "env.json").read_text())["ranks"] == 2
    first = Path("iterations/0001/logps.parquet")  # of π_0: no step of training is in it
    assert pq.read_table(one / first).equals(pq.read_table(two / first))


@pytest.mark.slow
def test_reward_models_judge_on_all_ranks(prepared: Path, tmp_path: Path) -> None:
    """The same passes on one rank and two: judgments bit for bit, nothing asked twice."""
    members = [
        {"name": "bradley_terry", "model": str(save_reward(tmp_path / name, seed=seed))}
        | {"dtype": "float32", "device": "cpu", "batch_size": 4}
        for seed, name in enumerate(("first", "second"))
    ]
    oracle = f"oracle: {json.dumps({'name': 'mixture', 'members': members})}"
    prepared.write_text(prepared.read_text().replace("oracle: {target_words: 2}", oracle))
    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        shutil.copytree(load_config(prepared).output_dir, run)
    verb = ["judge", prepared, "--iteration", "1"]
    assert main([*map(str, verb), f"output_dir={one}"]) == 0
    done = torchrun("-m", "comal_fast", *verb, f"output_dir={two}")
    assert done.returncode == 0, done.stderr
    name = Path("iterations/0001/judgments.parquet")
    assert pq.read_table(one / name).equals(pq.read_table(two / name))
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in (one, two)]
    assert rows[0]["oracle/asked"] == rows[1]["oracle/asked"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("moments", ["prepared", "lean"])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_checkpoint_resumes_on_another_number(
    before: int, after: int, moments: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Killed in the fourth step of six, gone on with on more or fewer ranks."""
    prepared: Path = request.getfixturevalue(moments)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for run in (calm, killed):
        shutil.copytree(load_config(prepared).output_dir, run)
    verb = ["train", str(prepared), "--iteration", "1"]
    assert main([*verb, f"output_dir={calm}"]) == 0

    driver = [str(KILLING), "comal_fast.phases.train:Trainer.optimizer_step", "4"]
    arguments = [*verb, f"output_dir={killed}"]
    if before == 2:
        assert torchrun(*driver, *arguments).returncode != 0
    else:
        done = subprocess.run([python(), *driver, *arguments], capture_output=True)
        assert done.returncode == -9
    checkpoint = json.loads((killed / "iterations/0001/checkpoint/trainer.json").read_text())
    assert checkpoint["step"] == 3 and not (killed / MODEL).exists()
    if after == 2:
        done = torchrun("-m", "comal_fast", *arguments)
        assert done.returncode == 0, done.stderr
    else:
        assert main(arguments) == 0
    assert gap(load_file(killed / MODEL), load_file(calm / MODEL)) <= 1e-6
    rows = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["phase"] == "train"]
    assert trained[:3] == checkpoint["rows"] and len(trained) > 3  # not begun anew
    assert not (killed / "iterations/0001/checkpoint").exists()


THREADS = """
from pathlib import Path

import torch

from comal_fast.distributed.group import run_rank


def threads() -> list[str]:
    return sorted(path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


torch.set_num_threads(1)
before = threads()
assert run_rank(lambda: 0) == 0
assert threads() == before, threads()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path: Path) -> None:
    """One that frees a tensor while the interpreter ends would abort the process."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    ended = torchrun(script)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_error_of_one_rank_ends_all(prepared: Path, tmp_path: Path) -> None:
    """Rank 1 lacks the model: one line, its status 2, and rank 0 does not wait for ever."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, sys\n"
        "from comal_fast.cli import main\n"
        "missing = ['model.name_or_path=./none'] if os.environ['RANK'] == '1' else []\n"
        "sys.exit(main([*sys.argv[1:], *missing]))\n"
    )
    output = tmp_path / "run"
    done = torchrun(script, "run", prepared, f"output_dir={output}")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "comal-fast" in line]
    assert lines == ["comal-fast: error: model.name_or_path ./none: no such folder"]
    assert "exitcode  : 2" in done.stderr and "RuntimeError" not in done.stderr
