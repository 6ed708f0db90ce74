"""The `mixture` oracle: the probabilities of its members, weighted (COMAL's eq. 4, 2410.23223v2).

Probabilities are mixed, never scores: two Bradley–Terry members of one weight never make a strict
cycle, of unequal weights they may.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from comal_fast.config.oracle import MixtureConfig
from comal_fast.oracles import make_oracle, oracle_key
from comal_fast.oracles.base import Comparison, Oracle

Ask = Callable[[Sequence[Comparison]], Iterator[np.ndarray]]


class MixtureOracle(Oracle):
    """P(y ≻ y') = Σ_m w_m P_m(y ≻ y'), Σ w_m = 1. `names`: what tells the members' judgements."""

    def __init__(
        self, members: Sequence[Oracle], weights: Sequence[float], names: Sequence[str]
    ) -> None:
        self.members, self.names = members, names
        self.is_model = any(member.is_model for member in members)
        self.weights = [weight / sum(weights) for weight in weights]

    def compare(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray]:
        """Yield the mixture's (len(left), len(right)) float64 matrix for each, in order.

        One member after the other, each released when it is done: two large models are never held
        together. All comparisons are read before the first matrix comes.
        """
        items = list(comparisons)
        yield from self._mixed(items, [member.compare for member in self.members])

    def first_wins(self, comparisons: Iterable[Comparison]) -> Iterator[np.ndarray] | None:
        """Those of the members that heed the order, mixed with what the others say."""
        items = list(comparisons)
        heeding = [member.first_wins([]) is not None for member in self.members]
        if not any(heeding):
            return None
        asked = [
            cast(Ask, member.first_wins) if heeds else member.compare
            for member, heeds in zip(self.members, heeding, strict=True)
        ]
        return self._mixed(items, asked)

    def _mixed(self, items: Sequence[Comparison], asked: Sequence[Ask]) -> Iterator[np.ndarray]:
        sums = [np.zeros((len(item.left), len(item.right))) for item in items]
        last = len(self.members) - 1
        for number, (ask, weight) in enumerate(zip(asked, self.weights, strict=True)):
            for total, matrix in zip(sums, ask(items), strict=True):
                total += weight * matrix
                if number == last:
                    yield total
            self.members[number].release()

    def fingerprint(self) -> str:
        """A text of the weights and of what tells the members' judgements."""
        return "mixture/1 " + json.dumps([self.weights, list(self.names)])

    def counts(self) -> dict[str, float]:
        """Those of the members, added up."""
        sums: Counter[str] = Counter()
        for member in self.members:
            sums.update(member.counts())
        return dict(sums)

    def release(self) -> None:
        """As every member does."""
        for member in self.members:
            member.release()


def make(options: MixtureConfig, cache: Path | None) -> Oracle:
    """The oracle of these options; `cache`: of members that name none."""
    members = [make_oracle(member, cache) for member in options.members]
    names = [oracle_key(m, o) for m, o in zip(members, options.members, strict=True)]
    return MixtureOracle(members, options.weights or [1.0] * len(members), names)
