"""AdamW in little memory: 8-bit moments, stochastic rounding, steps taken inside the backward pass.

`Stepper` says when parameters are updated, `AdamW` how.
"""

from comal_fast.optim.adamw import AdamW
from comal_fast.optim.make import check_installed, make_optimizer
from comal_fast.optim.stepper import BackwardStepper, Stepper

__all__ = ["AdamW", "BackwardStepper", "Stepper", "check_installed", "make_optimizer"]
