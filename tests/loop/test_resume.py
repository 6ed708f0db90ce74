"""Killed with SIGKILL in each phase and started again: the same weights, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from resume import comparable, contents, start

# (where, which call): the middle of every phase of both iterations, and the moments between a
# phase's work and its artefact. In order: each start gets a little further than the last.
KILLS = [
    ("comal_fast.generation.decode:Decoder._step", 2),  # held-out samples of π_0
    ("comal_fast.store.shards:Shards.discard", 1),  # their table is written
    ("comal_fast.generation.decode:Decoder._step", 10),  # generate, with π_0 evaluated
    ("comal_fast.store.artefacts:Table.write", 1),
    ("comal_fast.phases.judge:has_strict_cycle", 3),
    ("comal_fast.phases.pair:choose_pairs", 2),
    ("comal_fast.phases.logps:joint_logps", 1),
    ("comal_fast.phases.train:Trainer.optimizer_step", 1),
    ("comal_fast.phases.train:Trainer.optimizer_step", 3),
    ("comal_fast.phases.train:Trainer.save", 2),
    ("comal_fast.phases.train:Trainer._backward", 5),
    ("comal_fast.policies:Policies.keep", 1),  # behind the model, its checkpoints still there
    ("comal_fast.phases.evaluate:mean_interval", 2),
    ("comal_fast.store.artefacts:Json.write", 1),
    ("comal_fast.store.artefacts:Table.write", 1),
    ("comal_fast.store.artefacts:Json.write", 1),
    ("comal_fast.store.artefacts:Folder.write", 2),  # iteration 2
    ("comal_fast.phases.train:Trainer.optimizer_step", 2),
    ("comal_fast.loop:write_summary", 1),
]


@pytest.mark.slow
def test_killed_in_each_phase_ends_the_same(tiny_run: Path, tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    tiny_run.write_text(tiny_run.read_text() + "seed: 1\n")  # with many steps in both iterations
    assert start(tiny_run, calm) == 0
    for target, count in KILLS:
        assert start(tiny_run, killed, target, count) == -9, f"{target} was not reached"
    assert start(tiny_run, killed) == 0

    model = Path("iterations/0002/model/model.safetensors")
    ours, theirs = load_file(calm / model), load_file(killed / model)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    first = load_file(calm / "iterations/0001/model/model.safetensors")
    assert any(not torch.equal(first[n], t) for n, t in ours.items())  # iteration 2 did train

    def ordered(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(row, sort_keys=True) for row in rows)

    assert ordered(comparable(killed)) == ordered(comparable(calm))
    summaries = [json.loads((run / "summary.json").read_text()) for run in (calm, killed)]
    assert summaries[0]["win_rate"] == summaries[1]["win_rate"]
    assert contents(killed).keys() == contents(calm).keys()  # nothing of those killed is left


def test_finished_run_is_not_repeated(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert start(tiny_run, output) == 0
    weights = output / "iterations/0001/model/model.safetensors"
    before = weights.stat().st_mtime_ns, (output / "metrics.jsonl").read_bytes()
    assert start(tiny_run, output) == 0
    assert before == (weights.stat().st_mtime_ns, (output / "metrics.jsonl").read_bytes())
