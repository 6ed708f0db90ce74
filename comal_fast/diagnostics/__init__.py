"""Signs of a failing run: a pure check per failure, and what is done about it."""

from comal_fast.diagnostics.checks import CHECKS, Finding
from comal_fast.diagnostics.history import Evaluated, History

__all__ = ["CHECKS", "Evaluated", "Finding", "History"]
