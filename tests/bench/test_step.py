"""bench step: trainers that agree get times, one that does not gets none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.benches.step import agree
from bench.models import MODELS, load
from bench.pairs import plain_logps, random_pairs
from bench.trainers import AUTHORS, LEAN, LEANEST, LORA, NAMES, OURS, TRL, UNSHARED
from bench.trainers.base import Task


def test_who_disagrees_loses_the_time() -> None:
    def row(name: str, loss: float, norm: float) -> dict[str, object]:
        return {"name": name, "first": {"loss": loss, "grad_norm": norm}, "seconds": {"median": 1}}

    rows = {
        "plain": row("plain", 0.5, 2.0),
        "right": row("right", 0.50001, 2.0001),
        "wrong loss": row("wrong loss", 0.6, 2.0),
        "wrong gradient": row("wrong gradient", 0.5, 2.1),
        "no number": row("no number", float("nan"), 2.0),
        "failed": {"name": "failed", "why": "out of memory"},
    }
    agree(rows, 1e-3)
    assert {name for name, r in rows.items() if "seconds" in r} == {"plain", "right"}
    assert "0.6, but 0.5 by plain" in str(rows["wrong loss"]["why"])
    assert rows["failed"]["why"] == "out of memory"


class OneStep:
    """A turn that ends the loop after `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seen = steps, []  # type: tuple[int, list[tuple[float, float]]]

    def wait(self) -> None:
        if len(self.seen) == self.steps:
            raise StopIteration

    def done(self, loss: float, grad_norm: float) -> None:
        self.seen.append((loss, grad_norm))


@pytest.mark.parametrize("micro_pairs", [3, 1])
def test_our_trainer_and_the_plain_loop_take_the_same_steps(micro_pairs: int) -> None:
    from bench.trainers import TRAINERS

    results = {}
    pairs = random_pairs(MODELS["tiny"].vocab, 3, 12, 40, share=2)
    for name in (OURS, UNSHARED, AUTHORS):
        model = load("tiny", torch.device("cpu"), torch.float32)
        given = pairs.with_reference(plain_logps(model, pairs))
        turn = OneStep(3)
        with pytest.raises(StopIteration):
            TRAINERS[name](Task(model, given, micro_pairs, checkpointing=False), turn)
        results[name] = torch.tensor(turn.seen)
    for name in (OURS, UNSHARED):
        torch.testing.assert_close(results[name], results[AUTHORS], rtol=2e-4, atol=1e-5)
    assert results[OURS][0, 0] != pytest.approx(0.6931, abs=1e-4)  # more than log 2 is compared


@pytest.mark.slow
@pytest.mark.nightly
def test_every_trainer_in_its_process(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")  # of the lean rows
    out = tmp_path / "step.json"
    options = ["--model", "tiny", "--pairs", "2", "--response", "8", "--repeat", "2"]
    options += ["--responses-per-prompt", "4", "--peers", *(n for n in NAMES if n != "comal")]
    assert main(["step", "--device", "cpu", *options, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert rows.keys() == set(NAMES.values())
    for name in (OURS, UNSHARED, LEAN, LEANEST, LORA, AUTHORS):
        assert len(rows[name]["seconds"]["runs"]) == 2 and rows[name]["peak"] > 2**26
        seconds = rows[name]["seconds"]["median"]
        tokens = record["shape"]["distinct_tokens"]
        assert rows[name]["tokens_per_second"] == pytest.approx(tokens / seconds)
    if "why" in rows[TRL]:
        assert "No module named 'trl'" in rows[TRL]["why"]
    else:
        assert rows[TRL]["first"]["grad_norm"] == pytest.approx(
            rows[AUTHORS]["first"]["grad_norm"], rel=1e-3
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt-5"], "--model: invalid choice: 'gpt-5'"),
        (["--pairs", "0"], "--pairs: '0' is not a positive integer"),
        (["--dtype", "float64"], "float64"),
        (["--responses-per-prompt", "3"], "--responses-per-prompt: 3 is odd"),
        (["--prompts", "builtin"], "--prompts: tiny has no tokenizer here"),
        (["--peers", "verl"], "--peers: invalid choice: 'verl'"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["step", "--device", "cpu", "--model", "tiny", *options])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error
