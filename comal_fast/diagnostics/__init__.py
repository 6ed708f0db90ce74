"""Signs of a failing run: a pure check per failure, and what is done about it."""

from comal_fast.diagnostics.checks import CHECKS
from comal_fast.diagnostics.evidence import RUN_ERROR, Finding
from comal_fast.diagnostics.history import Evaluated, History
from comal_fast.diagnostics.slow_convergence import unbiased_variance

__all__ = ["CHECKS", "RUN_ERROR", "Evaluated", "Finding", "History", "unbiased_variance"]
