"""bench head: right results get times, wrong ones none, missing peers a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bench.peers as peers
from bench.__main__ import main
from bench.contender import Contender, Missing
from bench.problem import Leaves, Problem, Size, plain_loss

SMALL = ["--device", "cpu", "--tokens", "128", "--hidden", "16", "--vocab", "300", "--repeat", "2"]


def run(tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "head.json"
    assert main(["head", *SMALL, "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


def row(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in record["rows"] if r["name"].startswith(name))


def scaled_logits(p: Problem, leaves: Leaves) -> Tensor:
    hidden, weight = leaves
    return plain_loss(p, (hidden * 1.001, weight))


def forgets_a_word(p: Problem, leaves: Leaves) -> Tensor:
    hidden, weight = leaves
    last = weight[-1:] - 1e4 * hidden.detach().mean(0).sign()
    return plain_loss(p, (hidden, torch.cat([weight[:-1], last])))


def right_value_wrong_gradient(p: Problem, leaves: Leaves) -> Tensor:
    hidden, weight = leaves
    return plain_loss(p, (hidden, weight * 0.99 + 0.01 * weight.detach()))


def not_a_number(p: Problem, leaves: Leaves) -> Tensor:
    return plain_loss(p, leaves) * torch.nan


def raises(p: Problem, leaves: Leaves) -> Tensor:
    raise RuntimeError("no kernel for this shape\nand a long trace")


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (scaled_logits, "wrong result"),
        (forgets_a_word, "wrong result"),
        (right_value_wrong_gradient, "wrong result, not timed: dweight"),
        (not_a_number, "wrong result"),
        (raises, "RuntimeError: no kernel for this shape"),
    ],
)
def test_a_wrong_kernel_gets_no_time(
    kernel: Callable[[Problem, Leaves], Tensor],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def family(size: Size) -> Iterator[Contender]:
        yield Contender("suspect", kernel)

    monkeypatch.setitem(peers.FAMILIES, "suspect", family)
    record = run(tmp_path, "--peers", "suspect")
    assert row(record, "suspect")["why"].startswith(why)
    assert "seconds" not in row(record, "suspect")
    assert row(record, "comal_kernels")["seconds"]["median"] > 0


def test_the_right_ones_are_timed_against_the_floor(tmp_path: Path) -> None:
    record = run(tmp_path, "--peers", "torch", "checkpointed")
    floor = row(record, "floor")
    for name in ("comal_kernels", "plain torch", "checkpointed"):
        timed = row(record, name)
        assert len(timed["seconds"]["runs"]) == 2
        ratio = timed["seconds"]["median"] / floor["seconds"]["median"]
        assert timed["ratio_to_floor"] == pytest.approx(ratio)
        assert timed["tokens"] == 128
    assert row(record, "checkpointed")["variants"].keys() == {"256 tokens", "1024 tokens"}
    for name in ("commit", "versions", "device", "date", "command", "shape"):
        assert record[name]


def test_a_peer_that_is_not_there_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(size: Size) -> Iterator[Contender | Missing]:
        import no_such_package_at_all  # noqa: F401

        yield from ()

    monkeypatch.setitem(peers.FAMILIES, "absent", absent)
    record = run(tmp_path, "--peers", "absent")
    assert "no_such_package_at_all" in row(record, "absent")["why"]


def test_forward_only_and_peaked_data(tmp_path: Path) -> None:
    record = run(tmp_path, "--forward-only", "--data", "peaked", "--peers", "torch")
    assert record["bench"] == "head-forward" and record["data"] == "peaked"
    assert row(record, "plain torch")["ratio_to_floor"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "100"], "--tokens: 100 is not a positive multiple of 128"),
        (["--tokens", "-128"], "--tokens: '-128' is not a positive integer"),
        (["--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--device", "tpu"], "--device: 'tpu' is no device"),
        (["--peers", "tlr"], "--peers: 'tlr' is unknown; known are comal"),
        (["--peers", "none", "trl"], "--peers: `none` stands alone"),
        (["--json", "/no/such/folder/x.json"], "--json: /no/such/folder/x.json: no such folder"),
        (["--data", "smollm2", "--vocab", "99"], "smollm2 is 576 wide"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["head", *SMALL, *options])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error
