"""The two-player preference game, solved exactly in float64: matrices, Nash policies, solvers."""

from comal_fast.game.nash import (
    duality_gap,
    has_strict_cycle,
    is_unique,
    kl_divergence,
    nash_policy,
    strict_cycle,
)
from comal_fast.game.preference import (
    PAPER_START,
    Game,
    advantage,
    check_matrix,
    check_start,
    load_game,
    paper_game,
)
from comal_fast.game.solvers import SOLVERS, Trajectory, comal, inpo, ipo, mirror_step

__all__ = [
    "PAPER_START",
    "SOLVERS",
    "Game",
    "Trajectory",
    "advantage",
    "check_matrix",
    "check_start",
    "comal",
    "duality_gap",
    "has_strict_cycle",
    "inpo",
    "ipo",
    "is_unique",
    "kl_divergence",
    "load_game",
    "mirror_step",
    "nash_policy",
    "paper_game",
    "strict_cycle",
]
