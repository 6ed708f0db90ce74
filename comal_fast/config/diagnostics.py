"""`diagnostics:`, signs of a failing run and what is done about each."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from comal_fast.config.options import Options

Action = Literal["off", "warn", "stop", "rollback"]


class DiagnosticsConfig(Options):
    """Signs of a failing run, looked for after every iteration, and what is done about each.

    `warn` goes on; `stop` ends the run, with this iterate as its result; `rollback` ends it with
    the iterate before as its result (nothing is deleted); `off` does not look. Each diagnostic
    warns about at most one healthy run in twenty, however many iterations the run has:
    docs/diagnostics.md has the rates, by simulation.
    """

    readers: ClassVar[dict[str, tuple[str, ...]]] = {
        "max_grad_norm_growth": ("divergence",),
        "max_log_ratio": ("divergence",),
        "cycling_return": ("cycling",),
        "probe_responses": ("cycling", "slow_convergence"),
        "slow_kl": ("slow_convergence",),
        "slow_win_rate": ("slow_convergence",),
        "slow_window": ("slow_convergence",),
        "max_kl_to_reference": ("reference_drift",),
        "inner_c1": ("inner_accuracy",),
    }
    """Which diagnostics read which limit: one that only those read that are off is an error."""

    divergence: Action = "stop"
    """NaN or Inf, or a gradient norm or log-ratio out of bounds."""
    degradation: Action = "warn"
    """The last step went backwards: the iterate loses to the one before, by more than the reference
    explains. Or it loses to the mixture of all earlier iterates."""
    cycling: Action = "warn"
    """The policy went round in a circle that does not shrink, and gained nothing by it."""
    slow_convergence: Action = "warn"
    """Over `slow_window` iterations the policy neither moved nor gained, and it has not arrived:
    the win rates of its own responses differ. It takes three samples a prompt, and a loss whose
    fixed point is known, which dpo's and that of registered losses without a reward are not."""
    reference_drift: Action = "warn"
    """KL to the reference above `max_kl_to_reference`."""
    inner_accuracy: Action = "warn"
    """The inner problem is solved less accurately than the theory's c₁/(9t⁴), provably so."""
    max_grad_norm_growth: float = Field(10.0, ge=1)
    """divergence: highest gradient norm (median of 5 steps) over that of the first 5 steps."""
    max_log_ratio: float = Field(10.0, gt=0)
    """divergence: largest mean log-ratio to the anchor in training, nats per token."""
    cycling_return: float = Field(0.75, ge=0, le=1)
    """cycling: how near the end of a circle is to its beginning, as a share of its width. An
    outward spiral does not close, so a small share misses those that grow fast."""
    probe_responses: int = Field(16, ge=2)
    """cycling, slow_convergence: responses of the initial policy on whose log-probs distances are
    measured."""
    slow_window: int = Field(3, ge=1)
    """slow_convergence: how many iterations it looks back."""
    slow_kl: float = Field(1e-4, ge=0)
    """slow_convergence: least KL that an iteration moves the policy by, nats per response, measured
    as half the square of the probe's distance per iteration."""
    slow_win_rate: float = Field(0.005, ge=0)
    """slow_convergence: least gain of win rate per iteration over the iterate looked back to. The
    win rates of its responses must differ by `slow_window` times as much."""
    max_kl_to_reference: float = Field(1.0, gt=0)
    """reference_drift: nats per token."""
    inner_c1: float = Field(1.0, gt=0)
    """inner_accuracy: c₁ of the budget; the theory's own depends on the unknown Nash policy."""
