"""The contenders of the head, a file a family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from bench.contender import Contender, Missing
from bench.peers import apple, liger, ours, plain, quack, trl, verl
from bench.problem import Size
from bench.record import reason
from comal_fast.errors import InputError

Family = Callable[[Size], Iterator[Contender | Missing]]

OURS = "comal"
FAMILIES: dict[str, Family] = {  # the first is always there
    OURS: ours.contenders,
    "torch": plain.full,
    "compiled": plain.compiled,
    "checkpointed": plain.checkpointed,
    "trl": trl.contenders,
    "liger": liger.contenders,
    "cce": apple.contenders,
    "quack": quack.contenders,
    "verl": verl.contenders,
}


def chosen(names: Sequence[str] | None) -> list[str]:
    """The families that --peers names, ours first. InputError for an unknown one."""
    if names is None:
        return list(FAMILIES)
    for name in names:
        if name not in FAMILIES and name != "none":
            raise InputError(f"--peers: {name!r} is unknown; known are {', '.join(FAMILIES)}, none")
    if "none" in names and len(names) > 1:
        raise InputError("--peers: `none` stands alone")
    return [name for name in FAMILIES if name == OURS or name in names]


def contenders(families: Sequence[str], size: Size) -> list[Contender | Missing]:
    """The contenders of those families; one that can't be imported is a Missing that says why."""
    found: list[Contender | Missing] = []
    for family in families:
        try:
            found += FAMILIES[family](size)
        except ImportError as error:
            found.append(Missing(family, f"not installed: {reason(error)}"))
        except Exception as error:  # a package that breaks on import is a row too
            found.append(Missing(family, f"its import failed: {reason(error)}"))
    return found
