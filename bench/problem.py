"""The head's problem: packed pairs, a head weight, cached reference log-probs, a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bench.models import MODELS, SMOLLM2, load_smollm2, load_smollm2_tokenizer, prompt_text_ids
from comal_fast.errors import InputError

RESPONSE = 64  # tokens of a response
Leaves = tuple[Tensor, Tensor]  # hidden (T, H), weight (V, H)


@dataclass(frozen=True)
class Problem:
    """DPO, which every preference trainer has, over packed pairs: response 2i beats 2i + 1."""

    hidden: Tensor  # (T, H)
    weight: Tensor  # (V, H)
    target: Tensor  # (T,) int64
    cu_seqlens: Tensor  # (S + 1,) int32, on the host
    ref_logp: Tensor  # (S,)
    beta: float = 0.1

    @cached_property
    def host_target(self) -> Tensor:
        """The target on the host, where a trainer has it (T,)."""
        return self.target.cpu()

    def leaves(self, dtype: torch.dtype) -> Leaves:
        """Fresh leaves of hidden and weight."""
        hidden, weight = (x.detach().to(dtype) for x in (self.hidden, self.weight))
        return hidden.requires_grad_(), weight.requires_grad_()

    def dpo(self, logp: Tensor) -> Tensor:  # (T,) → ()
        """The loss from per-token log-probs, in plain torch."""
        rewards = logp.view(-1, RESPONSE).sum(1) - self.ref_logp
        return -torch.nn.functional.logsigmoid(self.beta * (rewards[::2] - rewards[1::2])).mean()

    def reference_free_dpo(self, logp: Tensor) -> Tensor:  # (T,) → ()
        """The DPO loss with reference log-probs of zero: the same products."""
        return replace(self, ref_logp=torch.zeros_like(self.ref_logp)).dpo(logp)

    def cross_entropy(self, logp: Tensor) -> Tensor:  # (T,) → ()
        """Mean negative log-prob: the same products, one coefficient for all rows."""
        return -logp.mean()


Objective = Callable[[Problem, Tensor], Tensor]  # from per-token log-probs (T,)
DPO, DPO_NO_REFERENCE, CROSS_ENTROPY = "dpo", "dpo without reference", "mean cross-entropy"
OBJECTIVES: dict[str, Objective] = {
    DPO: Problem.dpo,
    DPO_NO_REFERENCE: Problem.reference_free_dpo,
    CROSS_ENTROPY: Problem.cross_entropy,
}


def token_logps(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """(n, H), (V, H), (n,) → (n,): float32 logits (float64 of float64), then log-softmax."""
    logits = hidden @ weight.t()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return -torch.nn.functional.cross_entropy(logits, target, reduction="none")


def plain_loss(p: Problem, leaves: Leaves, objective: str = DPO) -> Tensor:
    """The loss by full logits: with float64 leaves, what all contenders are checked against."""
    return OBJECTIVES[objective](p, token_logps(*leaves, p.target))


def random_problem(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """A problem of seeded random tensors, at a trained model's scale: logits of deviation ~2."""
    _check_tokens(tokens)
    seeded: Any = {"generator": torch.Generator(device).manual_seed(0), "device": device}
    return _assemble(
        torch.randn(tokens, hidden, **seeded),
        torch.randn(vocab, hidden, **seeded).mul_(2 / hidden**0.5),
        torch.randint(0, vocab, (tokens,), **seeded),
        dtype,
        device,
    )


def peaked_problem(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """A synthetic problem with a trained model's peaked softmax, where none is at hand.

    Words follow Zipf's law through one coordinate, and each state leans towards its target's row.
    """
    plain = random_problem(tokens, hidden, vocab, torch.float32, device)
    weight, states = plain.weight, plain.hidden
    generator = torch.Generator(device).manual_seed(1)
    rank = torch.arange(1, vocab + 1, device=device)
    prior = -rank.float().log()  # log-frequency, up to a constant
    target = torch.multinomial(prior.exp(), tokens, replacement=True, generator=generator)
    lean = torch.empty(tokens, 1, device=device).uniform_(0, 3, generator=generator)
    states += weight[target] * lean
    weight[:, 0], states[:, 0] = prior, 1.0
    return _assemble(states, weight, target, dtype, device)


def smollm2_problem(
    tokens: int, hidden: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Problem:
    """A problem of SmolLM2-135M's head and states on text cut into pieces of RESPONSE tokens."""
    size = MODELS[SMOLLM2]
    if (hidden, vocab) != (size.hidden, size.vocab):
        raise InputError(
            f"--data smollm2 is {size.hidden} wide with {size.vocab} words; "
            f"got --hidden {hidden} --vocab {vocab}"
        )
    _check_tokens(tokens)
    model = load_smollm2(device, torch.float32)
    rows = prompt_text_ids(load_smollm2_tokenizer(), tokens // RESPONSE, RESPONSE + 1).to(device)
    with torch.no_grad():
        states = model.base_model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    weight = model.get_output_embeddings().weight.detach().clone()
    return _assemble(states.reshape(tokens, hidden), weight, rows[:, 1:].reshape(-1), dtype, device)


@dataclass(frozen=True)
class Size:
    """A head, where it lies, and its dtype."""

    hidden: int
    vocab: int
    dtype: torch.dtype
    device: torch.device

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def problem(self, tokens: int, data: str = "random") -> Problem:
        """A problem of DATA. InputError for a number of tokens that is no whole number of pairs."""
        return DATA[data](tokens, self.hidden, self.vocab, self.dtype, self.device)

    def text(self) -> dict[str, Any]:
        """What a record says of it."""
        name = str(self.dtype).removeprefix("torch.")
        return {"hidden": self.hidden, "vocab": self.vocab, "dtype": name}


DATA = {"random": random_problem, "peaked": peaked_problem, "smollm2": smollm2_problem}


def _check_tokens(tokens: int) -> int:
    if tokens < 1 or tokens % (2 * RESPONSE):
        raise InputError(f"--tokens: {tokens} is not a positive multiple of {2 * RESPONSE}")
    return tokens // RESPONSE


def _assemble(
    states: Tensor, weight: Tensor, target: Tensor, dtype: torch.dtype, device: torch.device
) -> Problem:
    tokens = len(target)
    count = _check_tokens(tokens)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(2))
    return Problem(
        states.to(device, dtype),
        weight.to(device, dtype),
        target.to(device),
        torch.arange(0, tokens + 1, RESPONSE, dtype=torch.int32),
        (noise * 3 - 12.0 * RESPONSE).to(device),
    )
