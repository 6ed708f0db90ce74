"""A game for each prompt: rows `{"prompt": …, "names": […], "matrix": [[…]]}` of a JSONL file.

A row may hold `start`, the policy on its prompt at first (else uniform), and `family`, what kind of
game it is. Several prompts may have the same game; `data.prompts` reads the same file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError
from comal_fast.game.preference import Array, Game, check_start, parse_game

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class PromptGame:
    """A game, the policy (n,) float64 that it is played from, and its family ("" for none)."""

    game: Game
    start: Array
    family: str


def load_games(path: str | Path) -> dict[str, PromptGame]:
    """The games of a JSONL file by prompt. InputError naming file, line and what is wrong there."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a JSONL file of games") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    games: dict[str, PromptGame] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            source = f"{path}, line {number}"
            prompt, found = _row(source, line)
            if prompt in games:
                raise InputError(f"{source}: the prompt {prompt!r} stands there twice")
            games[prompt] = found
    if not games:
        raise InputError(f"{path}: no game in it")
    return games


def _row(source: str, line: str) -> tuple[str, PromptGame]:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: malformed JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f"{source}: expected an object with the text `prompt`")
    if not isinstance(row.get("names"), list):
        raise InputError(f"{source}: 'names' is missing: the responses of the game")
    if "matrix" not in row:
        raise InputError(f"{source}: the key 'matrix' is missing")
    game = parse_game(row["matrix"], row["names"], source)
    start = check_start(row.get("start"), len(game.names), f"{source}, start")
    family = row.get("family", "")
    if not isinstance(family, str):
        raise InputError(f"{source}, family: expected text")
    return row["prompt"], PromptGame(game, start, family)
