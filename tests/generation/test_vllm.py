"""vLLM's process: what goes over, what comes back, and how it fails.

Quick tests run the real worker on a stand-in for vLLM; slow ones on vLLM itself, where
COMAL_FAST_VLLM names a Python that has it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from comal_fast.config import load_config
from comal_fast.config.generation import VllmConfig, VllmOptions
from comal_fast.config.schema import LoraConfig, ModelConfig
from comal_fast.errors import InputError
from comal_fast.generation.engine import Response, Sampled, make_engine
from comal_fast.loop import run_all
from comal_fast.model.stored import Stored
from comal_fast.store.directory import RunDirectory

STANDIN = Path(__file__).parents[1] / "support" / "standin"
PROMPTS = [[i, *range(10, 10 + i % 4)] for i in range(1, 12)]


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))


def sampled(folder: Path, log: Path, device: str = "cpu", adapter: Path | None = None) -> Sampled:
    from tiny import byte_tokenizer

    return Sampled(
        model=lambda: pytest.fail("it is not loaded here"),
        stored=lambda: Stored(str(folder), adapter=adapter),
        tokenizer=byte_tokenizer(),
        config=ModelConfig(name_or_path=str(folder), lora=adapter and LoraConfig(r=12)),
        device=torch.device(device),
        log=log / "samples",
    )


def options(**own: Any) -> VllmConfig:
    return VllmConfig(num_generations=3, max_new_tokens=4, vllm=VllmOptions(**own))


def all_of(batches: Iterator[dict[int, list[Response]]]) -> dict[int, list[Response]]:
    found: dict[int, list[Response]] = {}
    for batch in batches:
        assert not found.keys() & batch.keys()
        found |= batch
    return found


def expected(prompt: list[int], new: int = 4, count: int = 3) -> list[Response]:
    """What the stand-in says; the tiny model's end is 0."""
    rows = []
    for i in range(count):
        short = (prompt[0] + i) % 2 == 0
        rows.append(Response([prompt[-1] + i] * (1 if short else new) + [0] * short, short))
    return rows


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("engines", [1, 2, 20])
def test_every_prompt_comes_back_once(tiny_folder: Path, tmp_path: Path, engines: int) -> None:
    engine = make_engine(options(data_parallel_size=engines), sampled(tiny_folder, tmp_path))
    found = all_of(engine.sample(PROMPTS, 3, "0 generate 1"))
    assert found == {i: expected(prompt) for i, prompt in enumerate(PROMPTS)}
    logs = [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines()]
    seeds = [json.loads(line)["seed"] for line in logs if line.startswith("{")]
    assert len(set(seeds)) == len(seeds) == min(engines, len(PROMPTS))


@pytest.mark.usefixtures("standin")
def test_parts_are_the_whole(tiny_folder: Path, tmp_path: Path) -> None:
    engine = make_engine(options(), sampled(tiny_folder, tmp_path))
    parts = [all_of(engine.sample(PROMPTS, 3, "s", (part, 3))) for part in range(3)]
    assert sum(map(len, parts)) == len(PROMPTS) == len(parts[0] | parts[1] | parts[2])
    assert all_of(engine.sample([], 3, "s")) == {}


@pytest.mark.usefixtures("standin")
def test_options_go_by_vllms_names(tiny_folder: Path, tmp_path: Path) -> None:
    given = options(
        gpu_memory_utilization=0.5, quantization="fp8", max_num_seqs=7, enforce_eager=True
    )
    adapter = tmp_path / "adapter"
    engine = make_engine(given, sampled(tiny_folder, tmp_path, adapter=adapter))
    all_of(engine.sample(PROMPTS, 3, "s"))
    (line,) = [
        x for x in (tmp_path / "samples.vllm-0.log").read_text().splitlines() if x[:1] == "{"
    ]
    said = json.loads(line)
    said.pop("seed")
    assert said == {
        "model": str(tiny_folder),
        "trust_remote_code": False,
        "dtype": "bfloat16" if torch.cuda.is_available() else said["dtype"],
        "max_model_len": 4 + max(map(len, PROMPTS)),
        "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.5,
        "quantization": "fp8",
        "enforce_eager": True,
        "max_num_seqs": 7,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "enable_lora": True,
        "max_lora_rank": 16,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize(
    ("fails", "kept", "says"),
    [
        ("files", 0, r"vLLM failed: RuntimeError: Cannot find any model weights; the responses to"),
        (
            "memory",
            0,
            r"ValueError: No available memory for the cache blocks\.; change generation\.vllm\.gpu_"
            r"memory_utilization \(0\.9\), lower max_num_seqs, set enforce_eager",
        ),
        ("old", 0, r"RuntimeError: vllm 0\.9\.1 is too old; install vllm>=0\.32; the responses"),
        ("killed:4", 4, r"vLLM ended by SIGKILL; out of memory\? lower generation\.vllm\.max_num_"),
        ("dead:3", 3, r"a process of vLLM's ended without a word; out of memory\? lower gener"),
        ("hangs:5", 5, r"vLLM hangs: no sign of life for generation\.vllm\.stall_minutes=0\.05;"),
        ("start", 0, r"vLLM hangs: no sign of life while it started for generation\.vllm\.stall"),
    ],
)
def test_failures_are_one_line_and_lose_nothing(
    tiny_folder: Path,
    tmp_path: Path,
    fails: str,
    kept: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_VLLM", fails)
    engine = make_engine(options(stall_minutes=0.05), sampled(tiny_folder, tmp_path))
    found: dict[int, list[Response]] = {}
    with pytest.raises(InputError, match=says) as raised:
        for batch in engine.sample(PROMPTS, 3, "s"):
            found |= batch
    assert len(found) == kept and "\n" not in str(raised.value)
    assert f"the responses to {kept} of {len(PROMPTS)} prompts are kept" in str(raised.value)
    assert str(tmp_path / "samples.vllm-0.log") in str(raised.value)


@pytest.mark.usefixtures("standin")
def test_when_one_engine_fails_the_others_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_VLLM", "hangs:2")
    given = options(stall_minutes=0.05, data_parallel_size=3)
    with pytest.raises(InputError, match="2 of [34] prompts are kept"):
        all_of(make_engine(given, sampled(tiny_folder, tmp_path)).sample(PROMPTS, 3, "s"))
    assert workers() == []


def workers() -> list[str]:
    """Command lines of the workers that are alive, this test's alone."""
    mine = str(os.getpid())
    listed = subprocess.run(["ps", "-wweo", "ppid,args"], capture_output=True, text=True).stdout
    return [x for x in listed.splitlines() if "vllm_worker" in x and x.split()[0] == mine]


@pytest.mark.usefixtures("standin")
def test_nothing_outlives_a_run_that_is_killed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_VLLM", "hangs:2")
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1] / "support")!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from test_vllm import PROMPTS, make_engine, options, sampled
engine = make_engine(options(), sampled(Path({str(tiny_folder)!r}), Path({str(tmp_path)!r})))
for batch in engine.sample(PROMPTS, 3, "s"):
    print("sampled", flush=True)
"""
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stdout.readline() == "sampled\n"
    children = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout
    (worker,) = map(int, children.split())
    run.kill()
    run.wait()
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_python_without_vllm(tiny_folder: Path, tmp_path: Path) -> None:
    engine = make_engine(options(python=sys.executable), sampled(tiny_folder, tmp_path))
    with pytest.raises(InputError, match=r"generation\.vllm\.python: .* has no vllm; install it"):
        all_of(engine.sample(PROMPTS, 3, "s"))


def test_no_such_python(tiny_folder: Path, tmp_path: Path) -> None:
    engine = make_engine(options(python="/no/such/python"), sampled(tiny_folder, tmp_path))
    with pytest.raises(InputError, match=r"python: /no/such/python can't be run \(No such file"):
        all_of(engine.sample(PROMPTS, 3, "s"))


def test_prompts_that_are_too_long(tiny_folder: Path, tmp_path: Path) -> None:
    engine = make_engine(options(max_model_len=6), sampled(tiny_folder, tmp_path))
    with pytest.raises(InputError, match=r"max_model_len: 6, and .*max_new_tokens=4 needs 8"):
        all_of(engine.sample(PROMPTS, 3, "s"))


def test_engines_have_gpus_of_their_own(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standin: None
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    given = options(data_parallel_size=2, tensor_parallel_size=2)
    all_of(make_engine(given, sampled(tiny_folder, tmp_path, "cuda")).sample(PROMPTS, 3, "s"))
    logs = [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines()]
    assert sorted(json.loads(x)["gpus"] for x in logs if x[:1] == "{") == ["4,5", "6,7"]
    many = options(data_parallel_size=2, tensor_parallel_size=4)
    with pytest.raises(InputError, match="2 engines of tensor_parallel_size=4 need 8 GPUs, and"):
        all_of(make_engine(many, sampled(tiny_folder, tmp_path, "cuda")).sample(PROMPTS, 3, "s"))


@pytest.mark.usefixtures("standin")
def test_a_run_goes_on_where_the_engine_failed(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["generation.engine=vllm", "algorithm.iterations=1"]
    calm, cut = tmp_path / "calm", tmp_path / "cut"
    run_all(load_config(tiny_run, [*given, f"output_dir={calm}"]))
    assert "generation.engine=vllm has no batch_size; what the file says" in capsys.readouterr().out
    again = load_config(tiny_run, [*given, f"output_dir={cut}"])
    monkeypatch.setenv("STANDIN_VLLM", "dead:3")
    with pytest.raises(InputError, match="3 of 4 prompts are kept"):
        run_all(again)
    monkeypatch.delenv("STANDIN_VLLM")
    run_all(again)
    assert "the responses to 3 prompts are there already" in capsys.readouterr().out
    ours, theirs = (RunDirectory(path).iteration(1).samples.read() for path in (calm, cut))
    assert ours == theirs  # the stand-in draws nothing
    log = RunDirectory(cut).iteration(0).path / "eval_samples.vllm-0.log"
    assert log.read_text().count("step") == 1  # the fourth prompt alone


def _python() -> str:
    """A Python that has vLLM."""
    named = os.environ.get("COMAL_FAST_VLLM")
    if named is None:
        pytest.skip("no vLLM; name a Python that has it in COMAL_FAST_VLLM (`make vllm`)")
    return named


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's configuration with a small model of a shape that vLLM runs, sampled by vLLM."""
    from tiny import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("real")
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    tiny_model(**shape).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    # vLLM's processes wait by turning in circles; on two cores nothing else gets its turn
    (folder / "python").write_text(f'#!/bin/sh\nexec nice -n 19 {_python()} "$@"\n')
    (folder / "python").chmod(0o755)
    prompts = [{"prompt": f"Say {'very ' * (i % 4)}nicely what {i} is."} for i in range(30)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    config = {
        "output_dir": str(folder / "run"),
        "model": {"name_or_path": str(folder / "model"), "device": "cpu", "dtype": "float32"},
        "data": {"prompts": str(folder / "prompts.jsonl"), "eval_prompts": 6, "max_length": 256},
        "generation": {
            "engine": "vllm",
            "num_generations": 3,
            "max_new_tokens": 16,
            "vllm": {
                "python": str(folder / "python"),
                "enforce_eager": True,
                "gpu_memory_utilization": 0.05,
            },
        },
        "oracle": {"target_words": 2},
        "pairing": {"strategy": "all"},
        "algorithm": {"iterations": 1},
        "training": {"learning_rate": 1.0e-3, "train_batch_size": 4},
        "evaluation": {"bootstrap": 200},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def run_cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "comal_fast", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.slow
def test_vllm_samples_what_the_model_says(smollm2: Any, tmp_path: Path) -> None:
    """First tokens by χ² against the model's own probabilities; ends and lengths."""
    from comal_fast.model.load import load_model, load_tokenizer

    model, tokenizer = load_model(smollm2), load_tokenizer(smollm2)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    given = VllmConfig(
        max_new_tokens=12,
        temperature=0.9,
        vllm=VllmOptions(python=_python(), enforce_eager=True, gpu_memory_utilization=0.1),
    )
    policy = sampled(folder, tmp_path)
    policy.__dict__.update(tokenizer=tokenizer, config=smollm2)
    texts = ["The capital of France is", "Say yes.", "1, 2, 3, 4,"]
    prompts = [
        tokenizer(t)["input_ids"]
        if t[0] in "T1"
        else tokenizer.apply_chat_template([{"role": "user", "content": t}], return_dict=False,
                                           add_generation_prompt=True)
        for t in texts
    ]  # fmt: skip
    count = 150
    found = all_of(make_engine(given, policy).sample(prompts, count, "s"))
    ends = 0
    for number, prompt in enumerate(prompts):
        rows = found[number]
        assert len(rows) == count
        for row in rows:
            assert (row.ids[-1] in (2, tokenizer.eos_token_id)) == row.finished
            assert row.finished or len(row.ids) == 12
            assert 2 not in row.ids[:-1]
        ends += sum(row.finished for row in rows)
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1].double()
        likely = (logits / 0.9).softmax(-1)
        drawn = torch.bincount(torch.tensor([row.ids[0] for row in rows]), minlength=len(likely))
        often = likely * count >= 5
        expect = torch.cat([likely[often], 1 - likely[often].sum()[None]]) * count
        saw = torch.cat([drawn[often], count - drawn[often].sum()[None]])
        chi2, freedom = ((saw - expect) ** 2 / expect.clamp(min=1e-9)).sum().item(), len(expect) - 1
        assert chi2 < freedom + 4 * (2 * freedom) ** 0.5, (number, chi2, freedom)
    assert ends > 0


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_run_sampled_by_vllm(real: Path, tmp_path: Path, lora: bool) -> None:
    extra = ["training.learning_rate=5.0e-3", "algorithm.eta=0.02"]
    extra += ["model.lora={r: 4, alpha: 8}"] * lora
    done = run_cli("run", str(real), f"output_dir={tmp_path}", *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(tmp_path)
    assert run.report.is_file() and run.iteration(1).eval_samples.read().num_rows == 6
    # of samples of π_0 it would be negative: an adapter that is left out shows
    low, _ = run.iteration(1).evaluation.read()["kl_to_initial"]["ci95"]
    assert low > 0


@pytest.mark.slow
def test_vllm_fails_in_one_line(real: Path, tmp_path: Path) -> None:
    """A file that is missing; too little memory. Both for real."""
    config = yaml.safe_load(real.read_text())
    whole, broken = Path(config["model"]["name_or_path"]), tmp_path / "model"
    broken.mkdir()
    for file in whole.iterdir():
        (broken / file.name).symlink_to(file)
    (broken / "model.safetensors").unlink()
    for extra, says in (
        ([f"model.name_or_path={broken}"], "Cannot find any model weights"),
        (["generation.vllm.gpu_memory_utilization=0.0001"], "lower max_num_seqs"),
    ):
        failed = run_cli("run", str(real), f"output_dir={tmp_path / 'run'}", *extra)
        assert failed.returncode == 2, failed.stdout + failed.stderr
        assert says in failed.stderr and failed.stderr.count("\n") == 1, failed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=str)
@pytest.mark.parametrize("whom", ["worker", "core"])
def test_vllm_is_stopped_while_it_samples(
    real: Path, tmp_path: Path, how: signal.Signals, whom: str
) -> None:
    """What it had sampled is kept, and the same command goes on."""
    extra = [f"output_dir={tmp_path}", "generation.max_new_tokens=160", "data.eval_prompts=20",
             "evaluation.num_generations=60",
             "generation.vllm.max_num_seqs=16", "generation.vllm.stall_minutes=1"]  # fmt: skip
    command = [sys.executable, "-m", "comal_fast", "evaluate", str(real), "--iteration", "0"]
    run = subprocess.Popen([*command, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)  # fmt: skip
    log = RunDirectory(tmp_path).iteration(0).path / "eval_samples.vllm-0.log"
    try:
        while not (log.is_file() and "Passing raw prompts" in log.read_text()):
            assert run.poll() is None, run.stderr
            time.sleep(0.2)
        time.sleep(2.0)
        children = _below(run.pid)
        chosen = [p for p, name in children if ("vllm_worker" in name) == (whom == "worker")]
        for process in chosen:
            os.kill(process, how)
        out, errors = run.communicate(timeout=200)
    finally:
        run.kill()
    assert run.returncode == 2, (out, errors)
    assert errors.count("\n") == 1 and "of 20 prompts are kept" in errors, errors
    if whom == "worker" or how == signal.SIGSTOP:  # vLLM may not notice that its core is gone
        assert ("hangs" in errors) == (how == signal.SIGSTOP), errors
    assert not _alive(chosen[0])
    kept = int(errors.split("the responses to ")[1].split()[0])
    again = run_cli("evaluate", str(real), "--iteration", "0", *extra)
    assert again.returncode == 0, again.stderr
    assert kept == 0 or f"the responses to {kept} prompts are there already" in again.stdout
    assert RunDirectory(tmp_path).iteration(0).eval_samples.read().num_rows == 1200


def _below(process: int) -> list[tuple[int, str]]:
    """(pid, command line) of all that a process started."""
    listed = subprocess.run(["ps", "-wweo", "pid,ppid,args"], capture_output=True, text=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    found, wanted = [], {process}
    while new := [
        r for r in rows if int(r[1]) in wanted and int(r[0]) not in {p for p, _ in found}
    ]:
        found += [(int(r[0]), r[2]) for r in new]
        wanted = {int(r[0]) for r in new}
    return found
