"""When parameters are stepped changes nothing but memory; where their state lives neither."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import comal_fast.optim.slices as slices
from comal_fast.config.schema import TrainingConfig
from comal_fast.optim import BackwardStepper, Stepper, make_optimizer
from tiny import tiny_model

IN_BACKWARD = {"optimizer_in_backward": True, "max_grad_norm": 0.0}
OFFLOAD = {"optimizer_offload": True}
ROUNDED = {"stochastic_rounding": True}


@pytest.fixture(autouse=True)
def many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's larger parameters take several slices, the last one ragged."""
    monkeypatch.setattr(slices, "SLICE", 1024)


def loss(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def batches(steps: int, micro: int) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [torch.randint(261, (2, 9), generator=generator) for _ in range(micro)]


def train(
    model: Any, optimizer: Stepper, steps: int = 3, micro: int = 1, begin: int = 0
) -> list[float]:
    """The gradient norms of steps `begin` … `steps` − 1; the learning rate changes with each."""
    norms = []
    for step, parts in enumerate(batches(steps, micro)):
        if step < begin:
            continue
        for i, part in enumerate(parts):
            optimizer.arm(1e-3 / (1 + step), seed=17 + step, last=i == micro - 1)
            loss(model, part).backward()
        norms.append(optimizer.step())
    return norms


def make(dtype: torch.dtype = torch.float32, tied: bool = False, **options: Any) -> Any:
    model = tiny_model(tie_word_embeddings=tied, vocab_size=264).to(dtype)  # blocks of 256
    config = TrainingConfig(weight_decay=0.01, **options)
    return model, make_optimizer(model.parameters(), config)


def assert_same(ours: Any, theirs: Any) -> None:
    for (name, x), y in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [IN_BACKWARD, OFFLOAD, IN_BACKWARD | OFFLOAD])
@pytest.mark.parametrize("state", ["model", "float32"])
def test_weights_are_those_of_plain_adamw(
    options: dict[str, Any], tied: bool, micro: int, state: str
) -> None:
    plain, theirs = make(tied=tied, max_grad_norm=0.0)
    model, ours = make(tied=tied, optimizer_state=state, **{"max_grad_norm": 0.0, **options})
    assert type(theirs.inner) is torch.optim.AdamW
    before = [p.clone() for p in plain.parameters()]
    norms = [train(m, o, micro=micro) for m, o in ((plain, theirs), (model, ours))]
    assert_same(model, plain)
    assert norms[0] == norms[1]
    assert all(not torch.equal(p, b) for p, b in zip(plain.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_clipped_steps_are_those_of_plain_adamw() -> None:
    plain, theirs = make(max_grad_norm=0.1)
    model, ours = make(max_grad_norm=0.1, **OFFLOAD)
    norms = [train(m, o) for m, o in ((plain, theirs), (model, ours))]
    assert_same(model, plain)
    assert norms[0] == norms[1] and all(norm > 0.1 for norm in norms[0])
    loose, optimizer = make(max_grad_norm=0.0)
    train(loose, optimizer)
    assert not torch.equal(loose.lm_head.weight, plain.lm_head.weight)


MODES = [
    (torch.float32, IN_BACKWARD),
    (torch.float32, IN_BACKWARD | {"optimizer_state": "8bit"}),
    (torch.bfloat16, {"optimizer_state": "float32"}),
    (torch.bfloat16, ROUNDED | {"optimizer_state": "float32"}),
    (torch.bfloat16, ROUNDED | {"optimizer_state": "8bit"}),
    (torch.bfloat16, {"optimizer_state": "8bit"}),
]


@pytest.mark.parametrize("options", [IN_BACKWARD, OFFLOAD, IN_BACKWARD | OFFLOAD])
@pytest.mark.parametrize(("dtype", "kind"), MODES[1:])
def test_every_way_of_stepping_gives_the_same_weights(
    dtype: torch.dtype, kind: dict[str, Any], options: dict[str, Any]
) -> None:
    """Random numbers and 8-bit blocks included."""
    if "8bit" in kind.values():
        pytest.importorskip("bitsandbytes")
    kind = {k: v for k, v in kind.items() if k not in IN_BACKWARD} | {"max_grad_norm": 0.0}
    plain, theirs = make(dtype, **kind)
    model, ours = make(dtype, **kind | options)
    train(plain, theirs)
    train(model, ours)
    assert_same(model, plain)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), MODES)
def test_resumed_training_is_bit_identical(
    dtype: torch.dtype, kind: dict[str, Any], offload: bool
) -> None:
    if "8bit" in kind.values():
        pytest.importorskip("bitsandbytes")
    kind = kind | {"optimizer_offload": offload}
    calm, optimizer = make(dtype, **kind)
    train(calm, optimizer, steps=4)

    model, optimizer = make(dtype, **kind)
    train(model, optimizer, steps=2)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    model, optimizer = make(dtype, **kind)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, steps=4, begin=2)
    assert_same(model, calm)


def test_state_keeps_its_dtype_when_loaded() -> None:
    """torch's own load_state_dict would make it that of the parameters."""
    _, optimizer = make(torch.bfloat16, optimizer_state="float32")
    optimizer.load_state_dict(optimizer.state_dict())
    (state, *_) = optimizer.inner.state.values()
    assert state["exp_avg"].dtype is state["exp_avg_sq"].dtype is torch.float32


def test_resumes_from_a_state_dict_by_parameter_names() -> None:
    """That of torch.distributed.checkpoint."""
    model, optimizer = make(tied=True, optimizer_state="float32", **IN_BACKWARD | OFFLOAD)
    train(model, optimizer, steps=2)
    weights, state = get_state_dict(model, optimizer.inner)
    assert "model.embed_tokens.weight" in state["state"]
    kept = copy.deepcopy([weights, state])
    train(model, optimizer, steps=4, begin=2)
    again, optimizer = make(tied=True, optimizer_state="float32", **IN_BACKWARD | OFFLOAD)
    set_state_dict(again, optimizer.inner, model_state_dict=kept[0], optim_state_dict=kept[1])
    train(again, optimizer, steps=4, begin=2)
    assert_same(again, model)


def test_gradients_are_freed_in_the_backward_pass() -> None:
    model, optimizer = make(**IN_BACKWARD, tied=True)
    alive: list[int] = []

    def count(_: Tensor) -> None:
        alive.append(sum(p.grad is not None for p in model.parameters()))

    hooks = [p.register_post_accumulate_grad_hook(count) for p in model.parameters()]
    train(model, optimizer, steps=2)
    assert len(alive) == 2 * len(hooks) and max(alive) == 1
    alive.clear()
    train(model, optimizer, steps=1, micro=2)  # gathered by the first pass, freed by the second
    assert alive[len(hooks) - 1] == len(hooks) and alive[-1] == 1


def test_with_host_memory_they_are_freed_in_every_backward_pass() -> None:
    model, optimizer = make(**IN_BACKWARD | OFFLOAD)
    alive: list[int] = []

    def count(_: Tensor) -> None:
        alive.append(sum(p.grad is not None for p in model.parameters()))

    hooks = [p.register_post_accumulate_grad_hook(count) for p in model.parameters()]
    train(model, optimizer, steps=2, micro=3)
    assert len(alive) == 6 * len(hooks) and max(alive) == 1


@pytest.mark.parametrize("options", [IN_BACKWARD, IN_BACKWARD | OFFLOAD])
def test_a_gradient_of_an_earlier_pass_alone_is_stepped_by(options: dict[str, Any]) -> None:
    """As where the last micro-batch visits no token of an expert."""

    def run(options: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(5))]
        optimizer = make_optimizer(weights, TrainingConfig(**{"max_grad_norm": 0.0, **options}))
        optimizer.arm(1e-3, 0, last=False)
        (weights[0].sum() + weights[1].square().sum()).backward()
        optimizer.arm(1e-3, 0, last=True)
        weights[0].sum().backward()
        norm = optimizer.step()
        return weights, norm

    (ours, norm), (theirs, expected) = run(options), run({})
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) and norm == expected
    assert not torch.equal(ours[1], torch.ones(5))


def test_backward_passes_between_steps_are_not_stepped_by() -> None:
    model, optimizer = make(**IN_BACKWARD)
    assert isinstance(optimizer, BackwardStepper)
    train(model, optimizer, steps=1)
    before = [p.clone() for p in model.parameters()]
    loss(model, torch.zeros(1, 4, dtype=torch.long)).backward()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is not None for p in model.parameters())


def test_host_state_is_not_kept_on_the_device() -> None:
    """What `offload` keeps beside the model: slices, whatever the size of the parameters."""
    parameter = torch.nn.Parameter(torch.zeros(10_000))
    optimizer = make_optimizer([parameter], TrainingConfig(optimizer_offload=True))
    parameter.grad = torch.ones_like(parameter)
    optimizer.arm(1e-3, 0, last=True)
    optimizer.step()
    host = optimizer.inner.host
    held = sum(b.numel() for slot in host.slots for b in slot.buffers.values())
    assert 0 < held <= len(host.slots) * 2 * slices.SLICE < parameter.numel()
