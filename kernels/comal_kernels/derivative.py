"""Whether a loss's dphi is the derivative of its phi, by finite differences at a few residuals."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from comal_kernels.row import Hyper, Prox, Row, Terms

# square roots, of both signs: a loss's kinks lie at rounder numbers
RESIDUALS = tuple(sign * math.sqrt(x) for x in (0.02, 0.2, 0.7, 2, 5, 8) for sign in (1, -1))
STEP = 1e-4
TOLERANCE = 1e-3  # relative: a mistake in a formula is larger


def check_derivative(prox: Prox) -> None:
    """ValueError where dphi is not the slope of phi, nor between its slopes on both sides (a kink).

    Says nothing where phi is not finite, or where a row raises: it may need more than plausible
    numbers.
    """
    try:
        wrong = _first_wrong(prox)
    except Exception:
        return
    if wrong is not None:
        residual, given, slope = wrong
        raise ValueError(
            f"prox: {prox.name!r}: dphi is {given:.6g} at the residual {residual:.4f}; expected "
            f"the derivative of phi there, by finite differences {slope:.6g}"
        )


@torch.no_grad()
def _first_wrong(prox: Prox) -> tuple[float, float, float] | None:
    """A residual, dphi and the central difference of phi there, where they disagree."""
    u, terms = _float64(RESIDUALS), _plausible(prox)
    before, here, after = (_values(prox.phi, u + h, terms) for h in (-STEP, 0.0, STEP))
    given, left, right = _values(prox.dphi, u, terms), (here - before) / STEP, (after - here) / STEP
    rounding = 16 * torch.finfo(here.dtype).eps * here.abs() / STEP
    slack = TOLERANCE * left.abs().maximum(right.abs()) + rounding
    good = (left.minimum(right) - slack <= given) & (given <= left.maximum(right) + slack)
    wrong = (~good & left.isfinite() & right.isfinite()).nonzero()
    if wrong.shape[0] == 0:
        return None
    i = int(wrong[0])
    return RESIDUALS[i], given[i].item(), (left[i] + right[i]).item() / 2


def _values(row: Row, u: Tensor, terms: Terms) -> Tensor:  # (P,)
    found = row(u, terms)
    return (found if isinstance(found, Tensor) else _float64(found)).expand(u.shape)


def _plausible(prox: Prox) -> Terms:
    """Every term, whether the loss uses it or not, and a number for every hyperparameter."""
    ends = {"ref": (-3, -1), "last": (-2, -4), "reward": (-1, 1.5), "preference": (0.1, 0.95)}
    count, hyper = len(RESIDUALS), {name: _number(rule) for name, rule in prox.hyper.items()}
    between = {
        name: torch.linspace(*pair, count, dtype=torch.float64, device="cpu")
        for name, pair in ends.items()
    }
    return Terms(**between, hyper=hyper)


def _number(rule: Hyper) -> float:
    """The default, or else a number well inside the range, where x, x² and 1 − x all differ."""
    if rule.default is not None and not rule.required:
        return rule.default
    low, high = rule.low, rule.high
    if math.isfinite(low) and math.isfinite(high):
        return low + 0.3 * (high - low)
    return low + 0.3 if math.isfinite(low) else min(0.3, high - 0.3)


def _float64(x: object) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, device="cpu")
