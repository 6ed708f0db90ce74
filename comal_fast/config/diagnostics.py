"""`diagnostics:`, signs of a failing run and what is done about each."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from comal_fast.config.options import Options

Action = Literal["off", "warn", "stop", "rollback"]


class DiagnosticsConfig(Options):
    """Signs of a failing run, looked for after every iteration, and what is done about each.

    `warn` goes on; `stop` ends the run, with this iterate as its result; `rollback` ends it with
    the iterate before as its result (nothing is deleted); `off` does not look.
    """

    limits: ClassVar[dict[str, tuple[str, ...]]] = {
        "divergence": ("max_grad_norm_growth", "max_log_ratio"),
        "cycling": ("cycling_return", "probe_responses"),
        "slow_convergence": ("slow_kl", "slow_win_rate", "slow_window"),
        "reference_drift": ("max_kl_to_reference",),
        "inner_accuracy": ("inner_c1",),
    }
    """Which diagnostic reads which limit: a limit of one that is off is an error."""

    divergence: Action = "stop"
    """NaN or Inf, or a gradient norm or log-ratio out of bounds."""
    degradation: Action = "warn"
    """The iterate loses to an earlier one: the interval of the win rate lies under 50 %."""
    cycling: Action = "warn"
    """The policy went away, came back to an earlier iterate, and does not beat it."""
    slow_convergence: Action = "warn"
    """Over `slow_window` iterations the policy neither moved nor gained."""
    reference_drift: Action = "warn"
    """KL to the reference above `max_kl_to_reference`."""
    inner_accuracy: Action = "warn"
    """The inner problem is solved less accurately than the theory's c₁/(9t⁴), provably so."""
    max_grad_norm_growth: float = Field(10.0, ge=1)
    """divergence: highest gradient norm (median of 5 steps) over that of the first 5 steps."""
    max_log_ratio: float = Field(10.0, gt=0)
    """divergence: largest mean log-ratio to the anchor in training, nats per token."""
    cycling_return: float = Field(0.5, ge=0, le=1)
    """cycling: how near is back, as a share of the distance that the policy had gone."""
    probe_responses: int = Field(16, ge=2)
    """cycling: responses of the initial policy on whose log-probs distances are measured."""
    slow_window: int = Field(3, ge=1)
    """slow_convergence: how many iterations it looks back."""
    slow_kl: float = Field(0.1, ge=0)
    """slow_convergence: least change of KL to the initial policy, nats per response, iteration."""
    slow_win_rate: float = Field(0.005, ge=0)
    """slow_convergence: least gain of win rate per iteration over the iterate looked back to."""
    max_kl_to_reference: float = Field(1.0, gt=0)
    """reference_drift: nats per token."""
    inner_c1: float = Field(1.0, gt=0)
    """inner_accuracy: c₁ of the budget; the theory's own depends on the unknown Nash policy."""
