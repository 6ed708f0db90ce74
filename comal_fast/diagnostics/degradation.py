"""degradation: an iterate that is worse than what the run had before.

In an intransitive game a healthy iterate does lose to some earlier iterate, so that alone is no
failure. Two things are, since a healthy step rules them out:

- *The step went backwards.* The prox step from π_{t−1} maximises ⟨r, π⟩ − η KL(π ‖ π_{t−1}) with
  r(y) = P(y ≻ π_{t−1}) − τ log(π_{t−1}/π_ref)(y), so that exactly
  P(π_t ≻ π_{t−1}) + τ KL(π_{t−1} ‖ π_ref) − τ KL(π_t ‖ π_ref) ≥ ½ in every game, by
  (η − τ) KL(π_t ‖ π_{t−1}) + η KL(π_{t−1} ‖ π_t). The step of `ipo` maximises
  ⟨P(· ≻ π_{t−1}), π⟩ − η KL(π ‖ π_ref), and the same holds with η in place of τ.
- *It loses to the mixture of all earlier iterates.* log π_t is a sum of the win rates against them,
  so that it beats their mixture, as follow-the-regularised-leader does: for `ipo` with a moving
  reference the sum over s of P(π_t ≻ π_s) − ½ is η KL(π_t ‖ π_0) or more.
"""

from __future__ import annotations

import numpy as np

from comal_fast.config.schema import DiagnosticsConfig
from comal_fast.diagnostics.evidence import Finding, bound_rate, bound_regularised, level_of
from comal_fast.diagnostics.history import History

ROUNDING = 1e-6  # of a win rate: equal policies tie but for this


def degradation(history: History, limits: DiagnosticsConfig) -> Finding | None:
    """Find that the last step went backwards, or that the iterate loses to all earlier ones mixed.

    Both are shown at levels that hold for the whole run, half of its error each.
    """
    now = history.current
    if now is None or not now.wins:
        return None
    level = level_of(history, num_tests=2)
    mixed = np.mean(list(now.wins.values()), axis=0)
    found = bound_rate(mixed, level)
    if found.high < 0.5 - ROUNDING:
        text = (
            f"it loses to the mixture of all earlier iterates: its win rate is {found.mean:.1%} "
            f"[{found.low:.1%}, {found.high:.1%}]"
        )
        evidence = {"against": sorted(now.wins), "win_rate": found.mean, "level": level,
                    "interval": [found.low, found.high]}  # fmt: skip
        return Finding(text, evidence)
    return _step_backwards(history, level)


def _step_backwards(history: History, level: float) -> Finding | None:
    """Find that the iterate loses to the one that its step began at, by more than the KLs explain.

    Both are tested: means of log-ratios may be far off where a rare response was not drawn.
    """
    now, before = history.current, history.iteration - 1
    if now is None or history.pull is None or before not in now.wins:
        return None
    earlier = history.kl_to(before, now.reference)
    if earlier is None:
        return None
    rate = bound_rate(now.wins[before], level)
    change = history.pull * (earlier - now.kl_to_reference)
    explained = bound_regularised(now.wins[before], change, level)
    if max(rate.high, explained.high) >= 0.5 - ROUNDING:
        return None
    text = (
        f"its last step went backwards: its win rate over iterate {before} is {rate.mean:.1%} "
        f"[{rate.low:.1%}, {rate.high:.1%}]. The reference does not explain it: with the change of "
        f"KL to it the rate is {explained.mean:.1%}, and 50 % or more after a step that is solved"
    )
    evidence = {"against": before, "win_rate": rate.mean, "level": level,
                "interval": [rate.low, rate.high], "regularised": explained.mean}  # fmt: skip
    return Finding(text, evidence)
