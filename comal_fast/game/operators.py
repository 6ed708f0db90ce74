"""The prox step of each loss: the exact minimiser of its population value, float64.

The step that COMAL's inner solver takes on the game regularised towards π_ref is
Prox(π_k, g/η), π_{k+1} ∝ π_k exp(g/η), where g(y) = P(y ≻ π_k) − τ log(π_k/π_ref)(y) is the
gradient of J_τ at π_k (arXiv 2410.23223v2). A loss is brought to it by what it is fed: its anchor
(the policy that log-ratios are taken to) and its target. Pairs and responses are drawn from π_k.

Over softmax tables, the minimiser of every loss below is π ∝ anchor · exp(target):

- a square loss over pairs, E (h − h_anchor − t(y, y'))² with t antisymmetric, is a least-squares
  problem: log π(y) − log anchor(y) = E_{y'} t(y, y') + const;
- a square loss per response, E (log π − log anchor − t(y))², is 0 at anchor · exp(t), provided that
  this is normalised, which the exact log Z (sppo) or the solved V (dro) sees to;
- the logistic loss over pairs with soft labels q is stationary where the mean of σ(β(h − h_anchor))
  over y' equals that of q, for every y; where q = σ(g(y) − g(y')), at β (h − h_anchor) = Δg.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from comal_fast.errors import InputError
from comal_fast.game.nash import kl_divergence
from comal_fast.game.preference import Array

NEWTON_LIMIT = 200
NEWTON_TOLERANCE = 1e-13  # on win probabilities
_INFINITE = 30.0  # a score difference whose win probability is 1 − 1e-13
_LONGEST = 2.0  # of a Newton step, in score units: farther, the logistic is far from its tangent


@dataclass(frozen=True)
class Step:
    """What a prox step starts from. `...` is an optional batch of games.

    log_policy, log_reference (..., n): log π_k and log π_ref; gain (..., n): P(y ≻ π_k) − ½;
    advantages (..., n, n): P − ½; eta, tau: KL coefficients, 0 ≤ tau ≤ eta.
    """

    log_policy: Array
    log_reference: Array
    gain: Array
    advantages: Array
    eta: float
    tau: float


@dataclass(frozen=True)
class Operator:
    """A loss as a prox operator: its minimiser is anchor · exp(target), normalised.

    anchor, target: Step → (..., n), a log-policy and what is added to it. exact: whether that is
    Prox(π_k, g/η) in every game.
    """

    anchor: Callable[[Step], Array]
    target: Callable[[Step], Array]
    exact: bool = True


def _last(s: Step) -> Array:
    """log π_k."""
    return s.log_policy


def _mixture(s: Step) -> Array:
    """log of π_k^{1−τ/η} π_ref^{τ/η}, not normalised."""
    ratio = s.tau / s.eta
    return power(s.log_policy, 1 - ratio) + power(s.log_reference, ratio)


def _win_rate(s: Step) -> Array:
    """(P(y ≻ π_k) − ½)/η: the mean over y' ~ π_k of the soft label (2P(y ≻ y') − 1)/(2η)."""
    return s.gain / s.eta


def _reward(s: Step) -> Array:
    """r/η with r = P(y ≻ π_k) − ½ − τ log(π_k/π_ref)(y); the ratio is 1 where both are 0."""
    possible = np.isfinite(s.log_policy)
    ratio = np.subtract(
        s.log_policy, s.log_reference, out=np.zeros_like(s.log_policy), where=possible
    )
    return (s.gain - s.tau * ratio) / s.eta


def _fitted_scores(s: Step) -> Array:
    """Bradley–Terry scores of P on pairs from π_k, over β = 4η."""
    return bradley_terry_scores(s.advantages, np.exp(s.log_policy), s.gain) / (4 * s.eta)


OPERATORS: dict[str, Operator] = {
    # (h − (τ/η) h_ref − (1−τ/η) h_k − (2P−1)/(2η))², pairs from π_k. arXiv 2407.00617.
    "inpo": Operator(_mixture, _win_rate),
    # (h − h_ref' − (2P−1)/(2η))² with the geometric mixture π_k^{1−τ/η} π_ref^{τ/η} as its
    # reference, pairs from π_k. arXiv 2310.12036 eq. 17. With π_ref itself and η = τ the fixed
    # point is the same, but the step is a full best response, which cycles where τ is small.
    "ipo": Operator(_mixture, _win_rate),
    # per y ~ π_k: (log π − log π_k − (P̂ − ½)/η + log Z)² with P̂ := r + ½ and the exact
    # log Z = log E_{π_k} exp(r/η). arXiv 2405.00675 eq. 4. r may leave [0, 1]; a trainer that wants
    # probabilities keeps P̂ = P and puts (τ/η) log(π_k/π_ref)(y) into log Z.
    "sppo": Operator(_last, _reward),
    # per y ~ π_k: ½ (r − V − η log(π/π_k))², the policy it is regularised to being π_k, V solved.
    # arXiv 2405.19107.
    "dro": Operator(_last, _reward),
    # (η (h − h_k) − (r(y) − r(y')))², pairs from π_k. arXiv 2404.16767.
    "rebel": Operator(_last, _reward),
    # −q log σ(η(h − h_k)) − (1−q) log σ(−η(h − h_k)), q = σ(r(y) − r(y')): DPO (arXiv 2305.18290
    # eq. 7) with reference π_k, β = η, on labels that a Bradley–Terry annotator with the reward r
    # gives. r exists whatever P is: the oracle enters through P(y ≻ π_k) alone.
    "dpo": Operator(_last, _reward),
    # The same loss on the oracle's own labels, q = P(y ≻ y'), reference the mixture, β = 4η: what
    # one gets by feeding judged pairs to DPO. Its target is the Bradley–Terry fit of P over π_k
    # instead of the win rate. As σ(x) − ½ ≈ x/4, the step agrees with the prox step to first order
    # in P − ½, and is 0 exactly where the win rates are ½; elsewhere it differs, and the theorems
    # do not hold: KL to Nash can rise. A Newton solve of an (n, n) system per step.
    "dpo-raw": Operator(_mixture, _fitted_scores, exact=False),
}


def prox_step(name: str, step: Step) -> Array:
    """log π_{k+1} (..., n), the minimiser of the population loss of OPERATORS[name]."""
    operator = OPERATORS[name]
    return log_normalise(operator.anchor(step) + operator.target(step))


def mirror_step(
    log_policy: Array, log_reference: Array, advantages: Array, eta: float, tau: float
) -> Array:
    """One step π_{k+1} ∝ π_k^{1−τ/η} π_ref^{τ/η} exp(P(y ≻ π_k)/η), as log-probabilities (n,).

    `advantages` (n, n) is P − ½: the constant drops out. The INPO closed form, i.e. the prox step
    of the game regularised towards π_ref; tau = 0 is plain multiplicative weights.
    """
    gain = advantages @ np.exp(log_policy)
    return prox_step("inpo", Step(log_policy, log_reference, gain, advantages, eta, tau))


def bradley_terry_scores(advantages: Array, weights: Array, gain: Array) -> Array:
    """Scores s (..., n), mean 0 under `weights` (..., n), with E_{y'} σ(s(y) − s(y')) = gain + ½.

    The minimiser of the logistic loss on soft labels P over pairs from `weights`; gain (..., n) is
    their win rate − ½, advantages (..., n, n) P − ½. Newton's method on the win rates. InputError
    where there is no minimiser: P ∈ {0, 1} can push a score to infinity.
    """
    ones = np.ones_like(gain)
    scores = 4 * gain
    for _ in range(NEWTON_LIMIT):
        q = expit(scores[..., :, None] - scores[..., None, :])
        residual = gain + 0.5 - (q @ weights[..., None])[..., 0]
        if np.abs(scores).max() > _INFINITE:
            break
        if np.abs(residual).max() <= NEWTON_TOLERANCE:
            return scores
        slope = q * (1 - q) * weights[..., None, :]
        # the loss does not see a common shift; 1 wᵀ takes that direction out of the kernel
        system = ones[..., :, None] * weights[..., None, :] - slope
        diagonal = np.arange(gain.shape[-1])
        system[..., diagonal, diagonal] += slope.sum(axis=-1)
        change = np.linalg.solve(system, residual[..., None])[..., 0]
        longest = np.abs(change).max(axis=-1, keepdims=True)
        scores = scores + change * np.minimum(1.0, _LONGEST / np.maximum(longest, _LONGEST))
    raise InputError(
        "prox dpo-raw: its loss has no minimiser on this matrix (a win rate of 0 or 1 asks for "
        "an infinite score); use --prox dpo, or keep P inside (0, 1)"
    )


def regularised_gap(log_policy: Array, log_reference: Array, gain: Array, tau: float) -> Array:
    """Duality gap of π in the regularised game, 2·(max_p J_τ(p, π) − ½), shape (...).

    The best response is p ∝ π_ref exp(P(y ≻ π)/τ), and the gap 2τ KL(π ‖ p): summed so, it keeps
    its digits near 0. It bounds the distance to the game's Nash policy: gap ≥ 2τ KL(π ‖ π*_τ).
    gain (..., n): P(y ≻ π) − ½.
    """
    response = log_normalise(log_reference + gain / tau)
    gap: Array = 2 * tau * kl_divergence(np.exp(log_policy), response)
    return gap


def power(log_policy: Array, exponent: float | Array) -> Array:
    """log π^exponent, where 0⁰ = 1 (0 · log 0 would be NaN); exponent a number or (..., 1)."""
    zero = np.equal(exponent, 0)
    if not zero.any():
        return exponent * log_policy
    return np.where(zero, 0.0, np.where(zero, 1.0, exponent) * log_policy)


def log_normalise(logits: Array) -> Array:
    """log softmax over the last axis, (..., n)."""
    top = logits.max(axis=-1, keepdims=True)  # by hand: scipy's logsumexp is slow on short arrays
    total = np.exp(logits - top).sum(axis=-1, keepdims=True)
    normalised: Array = logits - (top + np.log(total))
    return normalised
