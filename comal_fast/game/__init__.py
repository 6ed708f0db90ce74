"""The two-player preference game, solved exactly in float64: matrices, Nash policies, solvers."""

from comal_fast.game.baselines import egpo, inpo, ipo, nash_md, omwu, sppo
from comal_fast.game.nash import (
    duality_gap,
    has_strict_cycle,
    is_falling,
    is_unique,
    kl_divergence,
    nash_policy,
    strict_cycle,
)
from comal_fast.game.newer import apo, mnpo, nash_prox, onpo, rspo
from comal_fast.game.operators import OPERATORS, Step, mirror_step, prox_step, regularised_gap
from comal_fast.game.preference import (
    PAPER_START,
    Game,
    advantage,
    check_matrix,
    check_start,
    load_game,
    paper_game,
)
from comal_fast.game.solvers import SOLVERS, comal
from comal_fast.game.trajectory import Trajectory

__all__ = [
    "OPERATORS",
    "PAPER_START",
    "SOLVERS",
    "Game",
    "Step",
    "Trajectory",
    "advantage",
    "apo",
    "check_matrix",
    "check_start",
    "comal",
    "duality_gap",
    "egpo",
    "has_strict_cycle",
    "inpo",
    "ipo",
    "is_falling",
    "is_unique",
    "kl_divergence",
    "load_game",
    "mirror_step",
    "mnpo",
    "nash_md",
    "nash_policy",
    "nash_prox",
    "omwu",
    "onpo",
    "paper_game",
    "prox_step",
    "regularised_gap",
    "rspo",
    "sppo",
    "strict_cycle",
]
