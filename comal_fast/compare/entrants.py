"""Run directories → entrants of a round robin, on the prompts that all of them held out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from comal_fast.compare.tournament import Entrant
from comal_fast.config import Config, load_saved
from comal_fast.config.load import override
from comal_fast.config.oracle import OracleConfig
from comal_fast.errors import InputError
from comal_fast.oracles import Messages, conversations, make_oracle, oracle_key
from comal_fast.store.artefacts import Table
from comal_fast.store.directory import RunDirectory

Held = dict[Hashable, tuple[Messages, list[str], float]]
"""A prompt's tokens, or its text → (conversation, responses, length of all)."""


def samples_of(
    runs: Sequence[Path], everything: bool, overrides: Sequence[str] = ()
) -> tuple[dict[str, Table], Config]:
    """(entrant → its held-out samples, configuration of the first run).

    Of each run the initial policy and its result, or with `everything` each iterate with held-out
    samples; initial policies with the same samples enter once. InputError for what is no run
    directory, and for runs with different oracles. `overrides`: `oracle.name=value` of each.
    """
    configs = [override(load_saved(RunDirectory(run).config), overrides) for run in runs]
    for run, config in zip(runs, configs, strict=True):
        if config.oracle == configs[0].oracle:
            continue
        if _judges(config.oracle) != _judges(configs[0].oracle):
            raise InputError(
                f"{run}: its oracle differs from that of {runs[0]}; "
                "only runs under one oracle can be compared"
            )
    found: dict[str, Table] = {}
    initial: set[str | None] = set()
    for run, name in zip(runs, _names(runs), strict=True):
        for iterate, table in _iterates(run, everything).items():
            label = f"π_{iterate}" if len(runs) == 1 else f"{name} π_{iterate}"
            if iterate == 0:
                if (key := table.key()) in initial:
                    continue
                label = label if initial else "initial"
                initial.add(key)
            found[label] = table
    return found, configs[0]


def _judges(options: OracleConfig) -> str:
    """What tells judgements: options that change only how they are got are no part of it."""
    return oracle_key(make_oracle(options), options)


def load_entrants(samples: Mapping[str, Table]) -> tuple[list[Entrant], list[Messages], int]:
    """(entrants, conversations that all of them held out, how many the one with most has).

    InputError for fewer than two entrants or two shared prompts.
    """
    return match({name: _read(table) for name, table in samples.items()})


def match(held: Mapping[str, Held]) -> tuple[list[Entrant], list[Messages], int]:
    """The same of what is read already."""
    if len(held) < 2:
        raise InputError(f"{' '.join(held)}: fewer than two sampled iterates to compare")
    first = next(iter(held.values()))
    shared = [p for p in first if all(p in other for other in held.values())]
    if len(shared) < 2:
        raise InputError(
            f"{', '.join(held)}: {len(shared)} held-out prompts in common, 2 are needed; "
            "use one seed and one data.prompts"
        )
    entrants = [
        Entrant(
            name,
            [own[p][1] for p in shared],
            np.array([own[p][2] / len(own[p][1]) for p in shared]),
        )
        for name, own in held.items()
    ]
    # a run of 0.1 kept the last message alone
    whole = [max((own[p][0] for own in held.values()), key=len) for p in shared]
    return entrants, whole, max(map(len, held.values()))


def _names(runs: Sequence[Path]) -> list[str]:
    """The ends of the folders' paths, as short as tells them apart.

    Raises InputError for a folder that is given twice.
    """
    whole = [run.resolve() for run in runs]
    if len(set(whole)) < len(whole):
        twice = next(run for run in runs if whole.count(run.resolve()) > 1)
        raise InputError(f"{twice}: given twice; an iterate is not compared with itself")
    for length in range(1, max(len(run.parts) for run in whole)):
        short = ["/".join(run.parts[-length:]) for run in whole]
        if len(set(short)) == len(short):
            return short
    return [str(run) for run in whole]


def _iterates(run: Path, everything: bool) -> dict[int, Table]:
    directory = RunDirectory(run)
    found = {t: directory.iteration(t).eval_samples for t in directory.sampled()}
    if not found:
        raise InputError(f"{run}: no held-out samples there; run `comal-fast run` or `evaluate`")
    if everything:
        return found
    result = directory.result()
    last = max(found) if result is None else result
    return {t: table for t, table in found.items() if t in (0, last)}


def _read(table: Table) -> Held:
    held: Held = {}
    samples = table.read()
    for row, messages in zip(samples.to_pylist(), conversations(samples), strict=True):
        prompt = tuple(row["prompt_ids"])
        messages, responses, tokens = held.get(prompt, (messages, [], 0))
        held[prompt] = (messages, [*responses, row["response"]], tokens + len(row["response_ids"]))
    return held
