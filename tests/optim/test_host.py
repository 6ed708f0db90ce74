"""Host state on a device with streams: every two accesses that conflict are ordered by a wait.

The streams are recorded ones, whose work runs on the CPU when asked for. What runs is the real
optimiser; what is checked is that no other order, which real streams could take, is left open.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import comal_fast.optim.host as host
import comal_fast.optim.slices as slices
from comal_fast.config.schema import TrainingConfig
from comal_fast.optim import AdamW, make_optimizer

Clock = Counter  # lane → how much of its work surely came before


@dataclass
class Recorder(TorchDispatchMode):
    """Vector clocks of the lanes; of each storage, accesses (lane, its time, from, to, write)."""

    deaf: tuple[str, str] | None = None  # (a, b): a does not heed the marks of b
    lanes: list[str] = field(default_factory=lambda: ["main"])
    clocks: dict[str, Clock] = field(default_factory=lambda: defaultdict(Counter))
    accesses: dict[int, list[tuple[str, int, int, int, bool]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    kept: list[Any] = field(default_factory=list)  # so that no storage's address is used twice
    races: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if view or func.overloadpacket.__name__ in ("empty_like", "detach", "is_pinned"):
            return result
        lane = self.lanes[-1]
        self.clocks[lane][lane] += 1
        given = {a.name: v for a, v in zip(schema.arguments, args, strict=False)} | (kwargs or {})
        for argument in schema.arguments:
            write = bool(argument.alias_info and argument.alias_info.is_write)
            self.access(func, given.get(argument.name), write)
        self.access(func, result, True)
        return result

    def access(self, func: Any, value: Any, write: bool) -> None:
        lane = self.lanes[-1]
        for x in tree_leaves(value):
            if not isinstance(x, Tensor) or x.numel() == 0:
                continue
            storage = x.untyped_storage()
            self.kept.append(storage)
            start = x.storage_offset() * x.itemsize
            end = start + x.numel() * x.itemsize
            for other, time, low, high, wrote in self.accesses[storage._cdata]:
                clash = (write or wrote) and low < end and start < high
                if clash and self.clocks[lane][other] < time:
                    self.races.append(f"{func} on {lane} against {other}")
            now = lane, self.clocks[lane][lane], start, end, write
            self.accesses[storage._cdata].append(now)


class RecordedLane:
    """In place of host.Lane."""

    recorder: ClassVar[Recorder]
    sides: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def side(cls, device: torch.device) -> RecordedLane:
        return cls(cls.sides.pop(0))

    @classmethod
    def current(cls, device: torch.device) -> RecordedLane:
        return cls(cls.recorder.lanes[-1])

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.recorder.lanes.append(self.name)
        yield
        self.recorder.lanes.pop()

    def mark(self) -> tuple[str, Clock]:
        return self.name, self.recorder.clocks[self.name].copy()

    def wait(self, mark: tuple[str, Clock] | None) -> None:
        if mark is not None and self.recorder.deaf != (self.name, mark[0]):
            self.recorder.clocks[self.name] |= mark[1]


def run(monkeypatch: pytest.MonkeyPatch, deaf: tuple[str, str] | None, state: Any) -> Recorder:
    """Two steps of three backward passes; gradients' memory is used anew once it is free."""
    monkeypatch.setattr(slices, "SLICE", 4096)
    monkeypatch.setattr(host, "Lane", RecordedLane)
    RecordedLane.recorder = recorder = Recorder(deaf)
    RecordedLane.sides = ["copies", "updates"]
    shapes = [(3, 5), (4096,), (5, 4096), (100, 100), (7,)]
    weights = [torch.nn.Parameter(torch.ones(s, dtype=torch.bfloat16)) for s in shapes]
    optimizer = AdamW(weights, lr=1e-3, state=state, stochastic_rounding=True, offload=True)
    assert optimizer.host is not None
    with recorder:
        for number in range(6):
            gradients = []
            optimizer.param_groups[0]["seed"] = number
            update = optimizer.update if number % 3 == 2 else optimizer.put_away
            for w in weights:
                with torch.no_grad():
                    w.grad = w * 0.5  # the backward pass reads the weights
                gradients.append(w.grad)
                update(w)
                w.grad = None
                waiting = {g.untyped_storage()._cdata for _, g in optimizer.host.waiting}
                free = [g for g in gradients if g.untyped_storage()._cdata not in waiting]
                for g in free:
                    g.fill_(torch.nan)
                gradients = [g for g in gradients if g.untyped_storage()._cdata in waiting]
                assert len(gradients) <= host.ALIVE
            optimizer.finish()
            for g in gradients:
                g.fill_(torch.nan)
    assert all(w.isfinite().all() and (w < 1).any() for w in weights)
    return recorder


@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_no_race(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    if state == "8bit":
        pytest.importorskip("bitsandbytes")
    recorder = run(monkeypatch, None, state)
    assert not recorder.races, recorder.races[:3]
    assert all(recorder.clocks[lane][lane] >= 30 for lane in ("main", "copies", "updates"))


@pytest.mark.parametrize(
    "deaf", [("updates", "main"), ("updates", "copies"), ("copies", "updates"), ("main", "updates")]
)
def test_no_wait_is_one_too_many(monkeypatch: pytest.MonkeyPatch, deaf: tuple[str, str]) -> None:
    """Without it there is a race, and this test sees it."""
    assert run(monkeypatch, deaf, "float32").races


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_the_same_weights_on_a_gpu(state: Any) -> None:
    """Of state on the device and of state in host memory, over passes that keep the GPU busy."""
    if state == "8bit":
        pytest.importorskip("bitsandbytes")

    def train(offload: bool) -> list[Tensor]:
        torch.manual_seed(0)
        shapes = [(5000, 5000), (7,), (3000, 3001), (20_000_000,)]
        weights = [torch.randn(s, device="cuda", dtype=torch.bfloat16) for s in shapes]
        weights = [torch.nn.Parameter(w) for w in weights]
        config = TrainingConfig(
            optimizer_state=state,
            stochastic_rounding=True,
            optimizer_in_backward=True,
            optimizer_offload=offload,
            max_grad_norm=0.0,
        )
        optimizer = make_optimizer(weights, config)
        for step in range(5):
            for micro in range(3):
                optimizer.arm(1e-2, step, last=micro == 2)
                sum((w.float() - micro).square().sum() for w in weights).backward()
            optimizer.step()
        return weights

    for ours, theirs in zip(train(True), train(False), strict=True):
        assert torch.equal(ours, theirs)
