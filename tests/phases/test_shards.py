"""What a phase has sampled or computed is not lost with it."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comal_fast.config import load_config
from comal_fast.generation.transformers import TransformersEngine
from comal_fast.loop import open_run, run_here
from comal_fast.model import logps
from comal_fast.store import shards
from comal_fast.store.shards import Shards

MADE = ("samples", "eval_samples", "judgments", "logps")
PHASES = (("evaluate", 0), ("generate", 1), ("judge", 1), ("pair", 1), ("logps", 1))


def run_phases(config: Path, output: Path, log: Path | None = None) -> None:
    """Every phase that keeps shards, each item in a shard of its own; `log` names those added."""
    shards.SECONDS, add = 0.0, Shards.add

    def logged(self: Shards, items: dict[int, Any]) -> None:
        add(self, items)
        if log is not None:
            with log.open("a") as file:
                file.write("".join(f"{self.folder} {number}\n" for number in items))

    Shards.add = logged  # type: ignore[method-assign]
    try:
        with open_run(load_config(config, [f"output_dir={output}", *SMALL])) as context:
            for phase, iteration in PHASES:
                run_here(context, phase, iteration)
    finally:
        Shards.add, shards.SECONDS = add, 30.0  # type: ignore[method-assign]


SMALL = ["generation.batch_size=3", "training.max_tokens_per_microbatch=60"]


def tables(output: Path) -> dict[str, Any]:
    """Content and key of what the phases wrote."""
    with open_run(load_config(output / "config.yaml")) as context:
        folders = [context.directory.iteration(t) for t in (0, 1)]
    found = [getattr(f, name) for f in folders for name in MADE if getattr(f, name).exists()]
    return {str(a.path.relative_to(output)): (a.key(), a.read().to_pylist()) for a in found}


def test_an_engine_that_breaks_loses_one_batch(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_phases(tiny_run, tmp_path / "calm")
    asked: list[int] = []
    sample = TransformersEngine.sample

    def breaking(self: TransformersEngine, prompts: Any, *rest: Any) -> Iterator[Any]:
        asked.append(len(prompts))
        for number, batch in enumerate(sample(self, prompts, *rest)):
            if number == 2:
                raise RuntimeError("the engine broke")
            yield batch

    monkeypatch.setattr(TransformersEngine, "sample", breaking)
    for _ in range(4):  # 4 held-out prompts, then 5
        try:
            run_phases(tiny_run, tmp_path / "broken")
            break
        except RuntimeError:
            pass
    monkeypatch.setattr(TransformersEngine, "sample", sample)
    assert asked == [4, 2, 5, 3, 1]
    run_phases(tiny_run, tmp_path / "broken")
    assert tables(tmp_path / "calm") == tables(tmp_path / "broken")
    assert not list((tmp_path / "broken").rglob("*.shards"))


def test_passes_of_log_probs_are_kept(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_phases(tiny_run, tmp_path / "calm", tmp_path / "log")
    passes = (tmp_path / "log").read_text().count("logps.shards")
    assert passes >= 3
    linear, calls = logps.linear_logprob, [0]

    def breaking(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError("broke")
        return linear(*arguments, **options)

    with open_run(load_config(tiny_run, [f"output_dir={tmp_path / 'broken'}", *SMALL])) as context:
        for phase, iteration in PHASES[:-1]:
            run_here(context, phase, iteration)
        monkeypatch.setattr(logps, "linear_logprob", breaking)
        with pytest.raises(RuntimeError):
            run_here(context, "logps", 1)
        run_here(context, "logps", 1)
    assert calls[0] == passes + 1  # the broken one again, and no other
    assert tables(tmp_path / "calm") == tables(tmp_path / "broken")


def test_what_does_not_fit_is_removed(tmp_path: Path) -> None:
    ours, other = Shards(tmp_path / "s", "a"), Shards(tmp_path / "s", "b")
    ours.add({1: [0.1, None], 2: "x"})
    ours.write()
    other.add({3: 1})
    other.write()
    (tmp_path / "s" / "4.json").write_text("{")
    (tmp_path / "s" / "5.json").write_text(json.dumps({"key": "a", "items": [1]}))
    assert ours.read() == {1: [0.1, None], 2: "x"}
    left = {p.name for p in (tmp_path / "s").iterdir()}
    assert left == {"1.json", "4.json.bad", "5.json.bad"}
    ours.discard()
    assert ours.read() == {} and not (tmp_path / "s").exists()


def test_written_by_number_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Shards(tmp_path / "s", "a")
    for number in range(shards.ITEMS - 1):
        kept.add({number: 0})
    assert not (tmp_path / "s").exists()
    kept.add({shards.ITEMS: 0})
    assert len(kept.read()) == shards.ITEMS
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    kept.add({1000: 0})
    now[0] = shards.SECONDS
    kept.add({1001: 0})
    assert kept.read().keys() >= {1000, 1001}


@pytest.mark.slow
def test_killed_at_random_twenty_times(tiny_run: Path, tmp_path: Path) -> None:
    """Bit-identical in the end, and of what was kept nothing was done twice."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["comal_fast.cli", "comal_fast.generation.decode"])
    log, draw = tmp_path / "log", random.Random(0)

    def seconds(output: str, log: Path, limit: float | None = None) -> float:
        worker = processes.Process(target=run_phases, args=(tiny_run, tmp_path / output, log))
        start = time.monotonic()
        worker.start()
        worker.join(limit)
        if worker.is_alive():
            worker.kill()
        worker.join()
        assert worker.exitcode in (0, -9)
        return time.monotonic() - start

    seconds("warm", tmp_path / "warm.log")
    whole = seconds("calm", tmp_path / "calm.log")
    for _ in range(20):
        seconds("killed", log, whole * draw.uniform(0.3, 0.9))
    seconds("killed", log)
    assert tables(tmp_path / "calm") == tables(tmp_path / "killed")
    added = [line.rsplit("/iterations", 1)[1] for line in log.read_text().splitlines()]
    assert len(added) <= len(set(added)) + 20
    assert not list((tmp_path / "killed").rglob("*.shards"))
