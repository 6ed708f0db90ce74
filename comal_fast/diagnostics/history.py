"""What a run has measured so far: all that the checks see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluated:
    """One iterate on the held-out prompts; arrays are (prompts,), in the same order everywhere."""

    iterate: int
    reference: int
    """The iterate that was the reference while this one was trained."""
    wins: Mapping[int, Array]
    """Per earlier iterate: P(this one's samples ≻ those of that one)."""
    kl_to_initial: Array
    """Monte-Carlo KL(π_t ‖ π_0), nats per response."""
    kl_to_reference: Array
    length: float
    """Mean tokens of a response."""
    distances: Mapping[int, float] = field(default_factory=dict)
    """Per earlier iterate: root mean square difference of the probe's log-probs, nats."""


@dataclass(frozen=True)
class History:
    """The run up to and including `iteration`."""

    iteration: int
    steps: Sequence[Mapping[str, Any]]
    """Metrics rows of this iteration's optimiser steps."""
    trained_length: float
    """Mean tokens of the responses that it trained on."""
    evaluated: Mapping[int, Evaluated]
    ref_update_interval: int
    tau: float | None
    """τ of the regularised game; None where the prox has none."""
    reward_scale: float = 1.0
    """rewards/* of the metrics per nat of log-ratio."""
    num_evaluations: int = 1
    """Iterates that the whole run will evaluate, without the initial policy."""
    pull: float | None = None
    """Weight of KL(π ‖ π_ref) in the objective that a step of this run improves, if known."""
    win_rate_variances: Mapping[int, Array] = field(default_factory=dict)
    """Per iteration, (training prompts,) `unbiased_variance` of its judged samples."""

    @property
    def current(self) -> Evaluated | None:
        """This iteration's iterate; None where it was not evaluated."""
        return self.evaluated.get(self.iteration)

    def kl_to(self, iterate: int, reference: int) -> Array | None:
        """Return KL(π_iterate ‖ π_reference) per prompt, or None where it was not measured."""
        found = self.evaluated[iterate]
        if iterate == reference:
            return np.zeros_like(found.kl_to_reference)
        if found.reference == reference:
            return found.kl_to_reference
        return found.kl_to_initial if reference == 0 else None
