"""What a prox loss is, as a row of the table PROX: φ(z − offset), its derivative, its offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

REQUIRED = math.nan  # default of a hyperparameter that has none


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter of a loss: default, range, and whether a tensor may be one."""

    default: float | None = REQUIRED
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False  # low itself is excluded
    per: str | None = None  # "response" / "sequence": a (P,) / (S,) tensor is accepted too
    doc: str = ""  # what it means, in one line

    @property
    def required(self) -> bool:
        # NaN alone differs from itself; torch.compile cannot trace isnan of a symbolic number
        return self.default is not None and self.default != self.default


@dataclass(frozen=True)
class Terms:
    """What a row may read, each (P,) float64 or None where the loss does not use it."""

    ref: Tensor | None  # (P,) reference log-prob, or its difference over the pair
    last: Tensor | None  # (P,) the same under the last iterate π_t
    reward: Tensor | None  # (P,) reward, or its difference over the pair; a given reward_margin
    preference: Tensor | None  # (P,) P̂(chosen ≻ rejected); per-response losses: P̂(y ≻ π_t)
    hyper: Mapping[str, float | Tensor]  # hyperparameters by name; tensors are (P,) float64

    def __getitem__(self, name: str) -> Any:
        """The value of a hyperparameter, or of a term declared in `uses` or `optional`.

        KeyError where it is neither.
        """
        value = self.hyper[name] if name in self.hyper else getattr(self, name, None)
        if value is None:
            raise KeyError(
                f"{name} is neither a hyperparameter nor declared in `uses` or `optional`"
            )
        return value


Row = Callable[[Tensor, Terms], Tensor]


@dataclass(frozen=True)
class Prox:
    """One prox loss: Σ pair_weight · φ(z − anchor − target).

    phi, dphi: (residual (P,), Terms) → (P,), the loss of one pair and its derivative in z.
    anchor: Terms → (P,), the reference part of the offset; z − anchor is the implicit reward margin
    target: Terms → (P,), or None where φ has no minimum to aim at (dpo): the rest of the offset.
    uses / optional: which of "ref", "last", "reward", "preference", "reward_margin" must / may be
        given; the others are refused. `reward_margin` is read as Terms.reward.
    scale: name of the hyperparameter that the reported margin is multiplied with (dpo: beta).
    centred: hyperparameter that is a baseline per group; while it is None the residuals of each
        `group` are centred at their weighted mean, a square loss's own minimiser over the baseline.
    doc: its source, in one line.
    """

    name: str
    phi: Row
    dphi: Row
    anchor: Callable[[Terms], Tensor]
    target: Callable[[Terms], Tensor] | None = None
    pairwise: bool = True
    uses: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    hyper: Mapping[str, Hyper] = field(default_factory=dict)
    scale: str | None = None
    centred: str | None = None
    doc: str = ""

    def offset(self, terms: Terms) -> Tensor:
        """What z is measured from, (P,): anchor + target."""
        anchor = self.anchor(terms)
        return anchor if self.target is None else anchor + self.target(terms)
