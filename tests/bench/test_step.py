"""bench step: trainers that agree get times, one that does not gets none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.__main__ import main
from bench.benches.step import agree, useful_flops
from bench.models import MODELS, load
from bench.pairs import plain_logps, random_pairs
from bench.trainers import AUTHORS, CONTESTANTS, LEAN, LEANEST, LORA, OURS, TRL, UNSHARED
from bench.trainers.base import Finished, Mode, Task
from bench.trainers.contest import Worker, measure_in_a_row
from bench.trainers.worker import Setting


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
    agree(list(rows.values()), 1e-3)
    assert {name for name, r in rows.items() if "seconds" in r} == {"plain", "right"}
    assert "0.6, but 0.5 by plain" in str(rows["wrong loss"]["why"])
    assert rows["failed"]["why"] == "out of memory"


class OneStep:
    """A turn that ends the loop after `steps`."""

    def __init__(self, steps: int) -> None:
        self.steps, self.seen = steps, []  # type: tuple[int, list[tuple[float, float]]]

    def wait(self) -> None:
        if len(self.seen) == self.steps:
            raise Finished

    def done(self, loss: float, grad_norm: float) -> None:
        self.seen.append((loss, grad_norm))


@pytest.mark.parametrize("micro_pairs", [3, 1])
def test_our_trainer_and_the_plain_loop_take_the_same_steps(
    micro_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ours", "authors"):
        monkeypatch.setattr(f"bench.trainers.{module}.LEARNING_RATE", 5e-7)
    results = {}
    pairs = random_pairs(MODELS["tiny"].vocab, 3, 12, 40, share=2)
    for key in ("comal", "stock", "recomputed", "unshared", "authors"):
        model = load("tiny", torch.device("cpu"), torch.float32)
        given = pairs.with_reference(plain_logps(model, pairs))
        turn = OneStep(3)
        with pytest.raises(Finished):
            CONTESTANTS[key].train(Task(model, given, Mode(micro_pairs)), turn)
        results[key] = torch.tensor(turn.seen)
    for key, found in results.items():
        torch.testing.assert_close(found, results["authors"], rtol=2e-4, atol=1e-5, msg=key)
    assert results["comal"][0, 0] != pytest.approx(0.6931, abs=1e-4)  # more than log 2


def test_modes_of_a_gpu_are_tried_and_rows_kept_as_they_come() -> None:
    """Trainers run one after another, each family in one process, as on a GPU."""
    pairs = random_pairs(MODELS["tiny"].vocab, 4, 12, 40)
    kept: list[list[str]] = []
    rows = measure_in_a_row(
        Setting("tiny", "cpu", "float32", 1), pairs, ["authors", "stock", "comal", "lora"], 2,
        lambda: None, lambda rows: kept.append([row["name"] for row in rows]),
    )  # fmt: skip
    assert [len(names) for names in kept] == [1, 2, 3, 4] and kept[-1][0] == AUTHORS
    for row in rows:
        assert len(row["seconds"]["runs"]) == 2 and row["peak"] > 2**26, row
    plain, stock, ours, lora = rows
    assert plain["micro_pairs"] in (1, 2) and ours["micro_pairs"] == 4
    for row in (stock, ours):
        assert row["first"]["loss"] == pytest.approx(plain["first"]["loss"], rel=1e-4)
    # of the model as it was, whatever the rows before have trained
    assert lora["first"]["loss"] == pytest.approx(plain["first"]["loss"], rel=1e-4)


def test_what_a_gpu_tries_of_trl() -> None:
    modes = CONTESTANTS["trl"].modes(16, cuda=True)
    assert len(modes) == 12 and {mode.micro_pairs for mode in modes} == {4, 8, 16}
    assert {(mode.liger, mode.recompute) for mode in modes} == {
        (False, "all"), (False, "none"), (True, "all"), (True, "none")
    }  # fmt: skip
    assert [mode.micro_pairs for mode in CONTESTANTS["trl"].modes(4, cuda=True)] == [4] * 4


def test_only_what_passes_the_head_counts_as_its_work() -> None:
    shape, pairs = MODELS["tiny"], random_pairs(MODELS["tiny"].vocab, 3, 12, 40)
    sizes = {"pairs": 3, "distinct_tokens": pairs.distinct_tokens,
             "response_tokens": pairs.response_tokens}  # fmt: skip
    through = pairs.distinct_tokens - 6  # the last token of a response predicts nothing
    model = load("tiny", torch.device("cpu"), torch.float32)
    layers = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name
    )
    counted = 6 * (layers * through + shape.vocab * shape.hidden * pairs.response_tokens)
    assert useful_flops("tiny", sizes) == pytest.approx(counted, rel=0.01)


@pytest.mark.slow
@pytest.mark.nightly
def test_every_trainer_in_its_process(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")  # of the lean rows
    out = tmp_path / "step.json"
    options = ["--model", "tiny", "--pairs", "2", "--response", "8", "--repeat", "2"]
    options += [
        "--responses-per-prompt",
        "4",
        "--peers",
        *(key for key in CONTESTANTS if key != "comal"),
    ]
    assert main(["step", "--device", "cpu", *options, "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert rows.keys() == {contestant.name for contestant in CONTESTANTS.values()}
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


def test_a_process_that_had_ligers_kernels_is_not_used_without_them() -> None:
    worker = Worker(Setting("tiny", "cpu", "float32", 1))
    pairs = random_pairs(MODELS["tiny"].vocab, 2, 8, 16)
    worker.ask("logps", pairs)
    first = worker._process
    for liger, same in ((False, True), (True, True), (True, True), (False, False)):
        worker.prepare(Mode(2, liger=liger))
        assert (worker._process is first) == same, liger
    worker.end()
