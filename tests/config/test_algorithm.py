"""The classes of `algorithm:` say of a loss what its row in comal_kernels.PROX says."""

from __future__ import annotations

import pytest

from comal_fast.config.algorithm import (
    PAST,
    PROX_CHOICE,
    from_row,
    known_targets,
    reads_of_pairing,
)
from comal_fast.training.items import reads_rewards
from comal_kernels import PROX, Hyper

# dro's τ is the option eta, and its baseline is solved; log_z of sppo is a choice of two numbers
ELSEWHERE = {"dro": {"tau", "value"}, "sppo": {"log_z"}}


def limits(of: object) -> dict[str, float]:
    """{ge, gt, le, lt: number} of a field's metadata."""
    found = {}
    for limit in getattr(of, "metadata", ()):
        for name in ("ge", "gt", "le", "lt"):
            if (value := getattr(limit, name, None)) is not None:
                found[name] = value
    return found


def of_row(rule: Hyper) -> dict[str, float]:
    found = {}
    if rule.low > -float("inf"):
        found["gt" if rule.open_low else "ge"] = rule.low
    if rule.high < float("inf"):
        found["le"] = rule.high
    return found


@pytest.mark.parametrize("name", PROX)
def test_a_class_and_its_row_agree(name: str) -> None:
    row, options = PROX[name], PROX_CHOICE.find(name)
    assert options is not None
    for hyper, rule in row.hyper.items():
        if hyper in ELSEWHERE.get(name, ()):
            continue
        field, allowed = options.model_fields[hyper], of_row(rule)
        given = limits(field)
        if hyper == "label_smoothing":  # at ½ labels say nothing
            assert (allowed.pop("le"), given.pop("lt")) == (0.5, 0.5)
        assert given == allowed, hyper
    margins = "reward_margin" in row.optional
    assert options.pairing == reads_of_pairing(row.pairwise, reads_rewards(row), margins)
    if row.pairwise:
        assert options.targets == known_targets(reads_rewards(row), margins)


@pytest.mark.parametrize("name", ["inpo", "ipo", "dpo", "rebel"])
def test_what_a_row_alone_gives_has_the_same_options(name: str) -> None:
    """A plugin's loss that is one of ours by another name is configured as ours is."""
    made, ours = from_row(name), PROX_CHOICE.find(name)
    assert made is not None and ours is not None
    assert set(PROX[name].hyper) <= set(made.model_fields)
    assert set(made.model_fields) >= set(ours.model_fields) - {"prox", *PAST}
    assert (made.pairing, made.targets) == (ours.pairing, ours.targets)
