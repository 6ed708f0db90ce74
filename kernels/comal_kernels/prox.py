"""The prox losses as rows of a table: each is φ(z − offset), with φ, its derivative and its offset.

z is linear in the trained policy's sequence log-probs (a pair's difference, or one response's sum);
the offset depends on cached numbers only. The fused and the plain path share these rows.

Pairs: z = logp(chosen) − logp(rejected). Responses (rejected=None): z = logp(response).
offset = anchor + target: `anchor` is the reference mix that z is measured from, `target` what
z − anchor is pulled towards. Everything a row receives is float64, in one order, shape (P,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn.functional import logsigmoid

REQUIRED = math.nan  # default of a hyperparameter that has none


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter of a loss: default, range, and whether a tensor may be one."""

    default: float | None = REQUIRED
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False  # low itself is excluded
    per: str | None = None  # "response" / "sequence": a (P,) / (S,) tensor is accepted too

    @property
    def required(self) -> bool:
        # NaN alone differs from itself; torch.compile cannot trace isnan of a symbolic number
        return self.default is not None and self.default != self.default


POSITIVE = Hyper(low=0.0, open_low=True)


@dataclass(frozen=True)
class Terms:
    """What a row may read, each (P,) float64 or None where the loss does not use it."""

    ref: Tensor | None  # (P,) reference log-prob, or its difference over the pair
    last: Tensor | None  # (P,) the same under the last iterate π_t
    reward: Tensor | None  # (P,) reward, or its difference over the pair
    preference: Tensor | None  # (P,) P̂(chosen ≻ rejected); per-response losses: P̂(y ≻ π_t)
    hyper: Mapping[str, float | Tensor]  # hyperparameters by name; tensors are (P,) float64

    def __getitem__(self, name: str) -> Any:
        """A hyperparameter, or a term that the loss declared in `uses` or `optional`."""
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
    uses / optional: which of "ref", "last", "reward", "preference" must / may be given; the others
        are refused.
    scale: name of the hyperparameter that the reported margin is multiplied with (dpo: beta).
    centred: hyperparameter that is a baseline per group; while it is None the residuals of each
        `group` are centred at their weighted mean, a square loss's own minimiser over the baseline.
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

    def offset(self, terms: Terms) -> Tensor:  # (P,)
        anchor = self.anchor(terms)
        return anchor if self.target is None else anchor + self.target(terms)


_ROWS: dict[str, Prox] = {}
PROX: Mapping[str, Prox] = MappingProxyType(_ROWS)


def register(prox: Prox, *, replace: bool = False) -> Prox:
    """Add a loss to PROX under its name; ValueError if that is taken, unless `replace`."""
    if prox.name in _ROWS and not replace:
        raise ValueError(f"prox: {prox.name!r} is registered already; expected replace=True")
    known = {"ref", "last", "reward", "preference"}
    unknown = (set(prox.uses) | set(prox.optional)) - known
    if unknown:
        raise ValueError(f"prox: uses/optional name {sorted(unknown)}, known are {sorted(known)}")
    _ROWS[prox.name] = prox
    return prox


def _square(u: Tensor, c: Terms) -> Tensor:
    return u * u


def _two(u: Tensor, c: Terms) -> Tensor:
    return 2.0 * u


def _smoothed(c: Terms) -> Tensor:  # (P,) weight of the order chosen ≻ rejected
    eps = c["label_smoothing"]
    return c["preference"] * (1.0 - 2.0 * eps) + eps


def _half_step(c: Terms) -> Tensor:  # soft label of the pair-style square losses: 1/(2η) at P̂ = 1
    return (2.0 * c["preference"] - 1.0) / (2.0 * c["eta"])


def _dpo(u: Tensor, c: Terms) -> Tensor:
    v, p = c["beta"] * u, _smoothed(c)
    return -p * logsigmoid(v) - (1.0 - p) * logsigmoid(-v)


def _inpo_anchor(c: Terms) -> Tensor:
    mix = c["tau_eta_ratio"]
    return mix * c["ref"] + (1.0 - mix) * c["last"]


# DPO, arXiv 2305.18290 eq. 7; smoothed as in its conservative form. π ∝ π_ref exp(r/β).
register(
    Prox(
        "dpo",
        phi=_dpo,
        dphi=lambda u, c: c["beta"] * ((c["beta"] * u).sigmoid() - _smoothed(c)),
        anchor=lambda c: c["ref"],
        uses=("ref",),
        optional=("preference",),
        hyper={"beta": POSITIVE, "label_smoothing": Hyper(0.0, 0.0, 0.5)},
        scale="beta",
    )
)

# IPO, arXiv 2310.12036 eq. 17. Minimiser π ∝ π_ref exp(P(y ≻ μ)/η).
register(
    Prox(
        "ipo",
        phi=_square,
        dphi=_two,
        anchor=lambda c: c["ref"],
        target=_half_step,
        uses=("ref",),
        optional=("preference",),
        hyper={"eta": POSITIVE},
    )
)

# INPO, arXiv 2407.00617; the inner solver of COMAL, arXiv 2410.23223.
# Minimiser π ∝ π_t^(1−τ/η) π_ref^(τ/η) exp(P(y ≻ π_t)/η).
register(
    Prox(
        "inpo",
        phi=_square,
        dphi=_two,
        anchor=_inpo_anchor,
        target=_half_step,
        uses=("ref", "last"),
        optional=("preference",),
        hyper={"eta": POSITIVE, "tau_eta_ratio": Hyper(low=0.0, high=1.0)},
    )
)

# SPPO, arXiv 2405.00675, per response; log Z = 0 is the form of the paper.
# Minimiser π ∝ π_t exp(P(y ≻ π_t)/η) where log Z is exact.
register(
    Prox(
        "sppo",
        phi=_square,
        dphi=_two,
        anchor=lambda c: c["last"],
        target=lambda c: (c["preference"] - 0.5) / c["eta"] - c["log_z"],
        pairwise=False,
        uses=("last", "preference"),
        hyper={"eta": POSITIVE, "log_z": Hyper(0.0, per="response")},
    )
)

# DRO, arXiv 2405.19107, per response: ½ (r − V − τ (logp − ref))², as a square in logp.
# V solved per group: ∂loss/∂V = 0 there, so V counts as a constant. Minimiser π ∝ π_ref exp(r/τ).
register(
    Prox(
        "dro",
        phi=lambda u, c: 0.5 * (c["tau"] * u) ** 2,
        dphi=lambda u, c: c["tau"] ** 2 * u,
        anchor=lambda c: c["ref"],
        target=lambda c: (c["reward"] - c["value"]) / c["tau"],
        pairwise=False,
        uses=("ref", "reward"),
        hyper={"tau": POSITIVE, "value": Hyper(None, per="sequence")},
        centred="value",
    )
)

# REBEL, arXiv 2404.16767: (η (h − h_last) − Δr)² = η² (h − h_last − Δr/η)².
# Minimiser π ∝ π_t exp(r/η).
register(
    Prox(
        "rebel",
        phi=lambda u, c: (c["eta"] * u) ** 2,
        dphi=lambda u, c: 2.0 * c["eta"] ** 2 * u,
        anchor=lambda c: c["last"],
        target=lambda c: c["reward"] / c["eta"],
        uses=("last", "reward"),
        hyper={"eta": POSITIVE},
    )
)
