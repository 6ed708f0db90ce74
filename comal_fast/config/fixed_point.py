"""Which game a configuration's fixed point solves: docs/sampled-step.md derives and measures it."""

from __future__ import annotations

from comal_fast.config.algorithm import LABELS, STRATEGY
from comal_fast.config.schema import Config
from comal_fast.config.validate import target_of


def other_game(config: Config) -> str | None:
    """Return one line that says why the fixed point is not the Nash policy of P; None where it is.

    Pairs that people judged (`data.pairs`) are no game, and losses of single responses train on
    every sample by its win rate.
    """
    if config.data.pairs is not None or STRATEGY not in config.algorithm.pairing:
        return None
    pairing, target = config.pairing, target_of(config)
    if LABELS in config.algorithm.pairing and pairing.labels == "hard":
        return (
            "pairing.labels=hard counts who is preferred and not how much: the fixed point is the "
            "Nash policy of the majority's game, not of P; soft or sampled labels keep P's"
        )
    if pairing.strategy == "all" or config.generation.num_generations == 2:
        return None
    if target == "label":
        cure = (
            "pairing.target=cross_fit or pairing.strategy=all keeps it"
            if "cross_fit" in config.algorithm.targets
            else "pairing.strategy=all keeps it"
        )
        return (
            f"pairing.strategy={pairing.strategy} chooses pairs by their win rates and regresses "
            f"them on their own labels: the fixed point is not the Nash policy of P; {cure}"
        )
    if target == "win_rate":
        return (
            f"pairing.strategy={pairing.strategy} chooses pairs by the win rates that they are "
            "regressed on: the fixed point is near the Nash policy of P, not at it; "
            "pairing.target=cross_fit keeps it"
        )
    return None
