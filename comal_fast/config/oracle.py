"""`oracle:`, who says which of two responses is better: a class an oracle.

Its code is `comal_fast/oracles/NAME.py`; a plugin brings both (`comal_fast.oracles.register`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from comal_fast.config.choice import Choice
from comal_fast.config.options import Options

ORACLE_CHOICE = Choice("name", "oracle", default="criteria")
Criterion = Literal["complete", "answers", "brief", "says_something", "varied", "direct"]


class OracleConfig(Options):
    """Who says which of two responses is better."""

    name: str
    """Which oracle judges."""


@ORACLE_CHOICE.register
class CriteriaConfig(OracleConfig):
    """A weighted mixture of written-down criteria, intransitive as people are."""

    name: Literal["criteria"] = "criteria"
    """A weighted mixture of written-down criteria."""
    weights: dict[Criterion, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Weight of each criterion (they need not sum to 1); empty: the oracle's own."""
    temperatures: dict[Criterion, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Temperature of a criterion's sigmoid; a criterion left out keeps its own."""
    target_words: int = Field(40, ge=1)
    """The length up to which a response counts as brief."""

    @model_validator(mode="after")
    def _some_weight(self) -> CriteriaConfig:
        if self.weights and sum(self.weights.values()) <= 0:
            raise ValueError("oracle.weights: all are zero; at least one must be positive")
        return self


@ORACLE_CHOICE.register
class MatrixConfig(OracleConfig):
    """A given preference matrix over known responses."""

    name: Literal["matrix"] = "matrix"
    """A given preference matrix over known responses."""
    game: str
    """JSON file `{"matrix": [[…]], "names": […]}`; the names are the responses."""
    unknown_wins: float = Field(0.0, ge=0, le=0.5)
    """P(any other response ≻ a known one); two others draw."""
