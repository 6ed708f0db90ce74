"""No time without a right result: each contender against float64, before any clock starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.contender import Contender
from bench.problem import Leaves, Problem, plain_loss

CHECK_TOKENS = 256  # two pairs: two chunks for whoever chunks by pair
LIMIT = 4.0  # times plain torch's error in the same dtype; a mistake is off by far more
LEAST = 1e-5  # where plain torch happens to be nearly exact: one number, the loss, may well be
FILTERED = 0.02  # relative error allowed to who leaves small gradients out on purpose
NAMES = ("loss", "dhidden", "dweight")


def solve(contender: Contender, p: Problem, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, dhidden and dweight of a contender."""
    leaves = p.leaves(dtype)
    loss = contender.loss(p, leaves)
    dhidden, dweight = torch.autograd.grad(loss, leaves)
    return loss.detach(), dhidden, dweight


def value(contender: Contender, p: Problem, dtype: torch.dtype) -> Tensor:
    """The loss alone, under no_grad."""
    with torch.no_grad():
        return contender.loss(p, p.leaves(dtype))


@dataclass(frozen=True)
class Verdict:
    """Relative errors (2-norm) against float64, by result, and what is allowed of each."""

    errors: dict[str, float]
    allowed: dict[str, float]

    @property
    def wrong(self) -> str | None:
        """What is wrong, in one line, or None."""
        for name, error in self.errors.items():
            if not error <= self.allowed[name]:
                limit = f"allowed are {self.allowed[name]:.1e}"
                return f"wrong result, not timed: {name} is off by {error:.1e}, {limit}"
        return None


class Judge:
    """Holds the float64 results of one problem; `__call__` judges a contender on it."""

    def __init__(self, p: Problem, dtype: torch.dtype) -> None:
        self.p, self.dtype = p, dtype
        self._known: dict[str, tuple[tuple[Tensor, ...], dict[str, float]]] = {}

    def __call__(self, contender: Contender) -> Verdict:
        exact, plain_errors = self._reference(contender.objective)
        errors = _errors(solve(contender, self.p, self.dtype), exact)
        if contender.exact:
            allowed = {name: LIMIT * error + LEAST for name, error in plain_errors.items()}
        else:
            allowed = {name: FILTERED + LIMIT * error for name, error in plain_errors.items()}
        return Verdict(errors, allowed)

    def _reference(self, objective: str) -> tuple[tuple[Tensor, ...], dict[str, float]]:
        if objective not in self._known:

            def loss(p: Problem, leaves: Leaves) -> Tensor:
                return plain_loss(p, leaves, objective)

            exact = solve(Contender("float64", loss), self.p, torch.float64)
            same = solve(Contender("plain", loss), self.p, self.dtype)
            self._known[objective] = exact, _errors(same, exact)
        return self._known[objective]


def _errors(result: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> dict[str, float]:
    return {
        name: float((a.double() - b).norm() / b.norm())
        for name, a, b in zip(NAMES, result, exact, strict=True)
    }
