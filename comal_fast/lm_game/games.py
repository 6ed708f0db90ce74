"""Writes many games, each a prompt's own, for a language model to play."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from comal_fast.errors import InputError
from comal_fast.game.families import FAMILIES
from comal_fast.game.nash import is_unique, nash_policy
from comal_fast.game.preference import Array
from comal_fast.store.directory import RunDirectory

SIZES = (3, 8)
LEAST = 0.05  # probability of a response at first: each is sampled sooner or later
DIGITS = 3  # of probabilities in the file
PARAPHRASE = "and {}"  # a held-out prompt: the words that the training prompt has, and one more
EMPIRICAL = "empirical"
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def many_games(
    count: int, held_out: int, seed: int, runs: Sequence[str | Path] = ()
) -> list[dict[str, Any]]:
    """Rows of a file that `load_games` and `data.prompts` read: `count` training prompts, each with
    a game of its own of 3 to 8 responses, and `held_out` paraphrases, spread over the families.

    Families in turn: those of `comal-fast game --game`, and with `runs` games cut out of their
    judged responses. Only games with one Nash policy. InputError for runs without enough of those.
    """
    if not 1 <= count <= 2000 or not 1 <= held_out <= count:
        raise InputError(
            f"--prompts {count}, --held-out {held_out}: 1 to 2000 prompts, and at most as many "
            "held out"
        )
    generator = np.random.default_rng(seed)
    found = _empirical(runs, generator) if runs else iter(())
    families = cycle([*FAMILIES, *([EMPIRICAL] if runs else [])])
    syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    topics = generator.permutation([a + b for a in syllables for b in syllables])[:count]
    rows = []
    for topic in topics:
        family = next(families)
        matrix = _matrix(family, found, generator)
        n = len(matrix)
        names = generator.choice(syllables, n, replace=False).tolist()
        game = {
            "names": names,
            "matrix": matrix.tolist(),
            "start": _start(n, generator).tolist(),
            "family": family,
        }
        rows.append({"prompt": f"{topic}?", "split": "train", **game})
    paraphrased = [{**row, "prompt": PARAPHRASE.format(row["prompt"])} for row in rows[:held_out]]
    return rows + [{**row, "split": "heldout"} for row in paraphrased]


def to_jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    """A row a line."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _matrix(family: str, found: Iterator[Array], generator: np.random.Generator) -> Array:
    """A rounded matrix of that family whose Nash policy is the only one."""
    while True:
        if family == EMPIRICAL:
            matrix = next(found, None)
            if matrix is None:
                raise InputError("--empirical: not enough judged prompts with one Nash policy")
        else:
            n, seed = generator.integers(SIZES[0], SIZES[1] + 1), generator.integers(2**31)
            matrix = FAMILIES[family](int(n), int(seed)).matrix
        matrix = _rounded(matrix)
        if is_unique(matrix, nash_policy(matrix)):
            return matrix


def _rounded(matrix: Array) -> Array:
    upper = np.triu(np.round(matrix, DIGITS), 1)
    lower = np.tril(np.round(1 - upper.T, DIGITS), -1)
    result: Array = upper + lower + 0.5 * np.eye(len(matrix))
    return result


def _start(n: int, generator: np.random.Generator) -> Array:
    start = np.round(LEAST + (1 - n * LEAST) * generator.dirichlet(np.ones(n)), DIGITS)
    start[start.argmax()] = 0.0
    start[start.argmin()] = round(1 - start.sum(), DIGITS)
    return start


def _empirical(runs: Sequence[str | Path], generator: np.random.Generator) -> Iterator[Array]:
    """Yield games of 3 to 8 of the judged responses to a prompt, all runs' prompts shuffled."""
    import pyarrow.parquet as pq

    matrices: list[Array] = []
    for run in runs:
        before = len(matrices)
        for folder in RunDirectory(run).iterations().values():
            if folder.judgments.exists():
                flat = pq.read_table(folder.judgments.path, columns=["matrix"])["matrix"]
                matrices += [
                    np.array(m).reshape(round(len(m) ** 0.5), -1) for m in flat.to_pylist()
                ]
        if len(matrices) == before:
            raise InputError(f"--empirical {run}: no judged responses in it")
    for i in generator.permutation(len(matrices)):
        matrix = matrices[i]
        if len(matrix) >= SIZES[0]:
            n = generator.integers(SIZES[0], min(SIZES[1], len(matrix)) + 1)
            some = generator.choice(len(matrix), int(n), replace=False)
            yield matrix[np.ix_(some, some)]
