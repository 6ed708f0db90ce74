"""`training.deterministic` means it, or names the operator that can't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from comal_fast import loop
from comal_fast.errors import InputError
from comal_fast.system.machine import named_nondeterminism, sum_in_one_order


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave torch's mode and the environment as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    was_on = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(was_on, warn_only=warned)
    torch.utils.deterministic.fill_uninitialized_memory = filled


def add_in_no_order() -> None:
    """Call an operator that has no deterministic implementation on any device."""
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


def test_nothing_is_only_warned_of() -> None:
    """Under `warn_only` torch's flash attention keeps its atomic additions."""
    sum_in_one_order()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("workspace", [":16:8", ":4096:8"])
def test_a_user_s_own_workspace_stays(workspace, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    sum_in_one_order()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == workspace


def test_a_workspace_without_an_order_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(InputError, match=r"^training.deterministic: .*=:0:0 .* unset it"):
        sum_in_one_order()


def test_a_phase_names_the_operator(monkeypatch, tmp_path: Path) -> None:
    sum_in_one_order()
    monkeypatch.setitem(loop.RUN, "train", lambda context, iteration: add_in_no_order())
    directory = SimpleNamespace(progress=tmp_path / "progress.json")
    context = SimpleNamespace(device=torch.device("cpu"), directory=directory)
    with pytest.raises(InputError) as caught:
        loop.run_here(context, "train", 1)
    message = str(caught.value)
    assert message.startswith("training.deterministic: torch's put_ can't add up in one order")
    assert "\n" not in message and "leave training.deterministic out" in message


def test_other_errors_pass() -> None:
    add_in_no_order()
    with pytest.raises(RuntimeError, match="size"), named_nondeterminism():
        torch.ones(2) + torch.ones(3)
