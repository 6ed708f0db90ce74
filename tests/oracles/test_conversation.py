"""Oracles are given the whole conversation, in every place where they are asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from comal_fast.compare.entrants import load_entrants, samples_of
from comal_fast.compare.tournament import play
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.oracles import Comparison, Message, Messages, Oracle

TURNS = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "Four."},
]


class Listening(Oracle):
    """Prefers the longer response, and remembers what it was asked about."""

    def __init__(self) -> None:
        self.heard: list[Messages] = []

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        for item in comparisons:
            self.heard.append(item.messages)
            left, right = (np.array([len(text) for text in s]) for s in (item.left, item.right))
            yield 0.5 + 0.4 * np.sign(left[:, None] - right[None, :])

    def fingerprint(self) -> str:
        return "listening"


def test_every_message_arrives(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tiny_run.parent / "turns.jsonl"
    ends = [{"role": "user", "content": f"And {n} more?"} for n in range(14)]
    prompts.write_text("".join(json.dumps({"prompt": [*TURNS, e]}) + "\n" for e in ends))
    oracle = Listening()
    for phase in ("judge", "evaluate"):
        monkeypatch.setattr(f"comal_fast.phases.{phase}.make_oracle", lambda *_: oracle)
    monkeypatch.setattr("comal_fast.loop.write_report", lambda directory: directory)
    options = [f"data.prompts={prompts}", "data.system_prompt=Be brief.", "algorithm.iterations=1"]
    config = load_config(tiny_run, [*options, "data.max_length=256"])
    run_all(config)
    whole = [
        (Message("system", "Be brief."), *(Message(**m) for m in TURNS), Message("user", e))
        for e in (end["content"] for end in ends)
    ]
    asked = len(oracle.heard)
    assert asked >= 5 + 4 and set(oracle.heard) <= set(whole)  # judged, then held out

    samples, _ = samples_of([Path(config.output_dir)], True)
    entrants, conversations, _ = load_entrants(samples)
    play(entrants, conversations, oracle)
    assert len(oracle.heard) == asked + 4 and set(oracle.heard[asked:]) <= set(whole)
    assert Comparison(whole[0], [], []).prompt == "And 0 more?"
