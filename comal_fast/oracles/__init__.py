"""Preference oracles, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comal_fast.game.preference import load_game
from comal_fast.oracles.base import Comparison, Oracle, self_comparison
from comal_fast.oracles.criteria import CriteriaOracle
from comal_fast.oracles.matrix import MatrixOracle
from comal_fast.oracles.order import debiased

if TYPE_CHECKING:
    from comal_fast.config.schema import OracleConfig


def make_oracle(config: OracleConfig) -> Oracle:
    """The oracle that `config.name` asks for, without position bias."""
    if config.name == "matrix":
        assert config.game is not None  # validate.py
        return debiased(MatrixOracle(load_game(config.game), config.unknown_wins))
    return debiased(CriteriaOracle(config.weights, config.temperatures, config.target_words))


__all__ = ["Comparison", "Oracle", "make_oracle", "self_comparison"]
