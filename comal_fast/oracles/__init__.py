"""Preference oracles, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comal_fast.oracles.base import Comparison, Oracle, self_comparison
from comal_fast.oracles.criteria import CriteriaOracle

if TYPE_CHECKING:
    from comal_fast.config.schema import OracleConfig


def make_oracle(config: OracleConfig) -> Oracle:
    """The oracle that `config.name` asks for."""
    return CriteriaOracle(config.weights, config.temperatures, config.target_words)


__all__ = ["Comparison", "Oracle", "make_oracle", "self_comparison"]
