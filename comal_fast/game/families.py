"""Games to try the solvers on: random, cyclic, Bradley–Terry, Blotto-like, or judged responses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from comal_fast.errors import InputError
from comal_fast.game.nash import strict_cycle
from comal_fast.game.preference import Array, Game, check_matrix, default_names, paper_game
from comal_fast.store.directory import RunDirectory

SIZES = (2, 10_000)
FIELDS = 3  # battlefields of the Blotto-like game


def random_game(size: int, seed: int) -> Game:
    """A game with P(i beats j) uniform on (0, 1), independently.

    About half the responses are in the Nash.
    """
    return _game(np.random.default_rng(seed).random((size, size)) - 0.5)


def cyclic_game(size: int, seed: int) -> Game:
    """Generalised rock-paper-scissors: i beats the next ⌊(n − 1)/2⌋ responses around the circle.

    It wins with a probability uniform on (0.6, 0.9), of each pair its own, so that the Nash policy
    is not simply uniform; opposite responses (n even) tie.
    """
    margin = np.random.default_rng(seed).uniform(0.1, 0.4, (size, size))
    ahead = np.subtract.outer(np.arange(size), np.arange(size)).T % size  # j − i
    sign = np.where(2 * ahead < size, 1.0, -1.0)
    sign[(ahead == 0) | (2 * ahead == size)] = 0.0
    return _game(sign * margin)


def bradley_terry_game(size: int, seed: int) -> Game:
    """A game with P(i beats j) = σ(r_i − r_j), r standard normal.

    Transitive: the best response is the Nash.
    """
    r = np.random.default_rng(seed).normal(size=size)
    return _game(1 / (1 + np.exp(r - r[:, None])) - 0.5)


def blotto_game(size: int, seed: int) -> Game:
    """Colonel Blotto: each response splits one unit over 3 fields, at random (Dirichlet).

    P(i beats j) is the share of fields on which i has more, ties counted half: with three fields
    and equal sums, 1/3 or 2/3, and full of cycles.
    """
    split = np.random.default_rng(seed).dirichlet(np.ones(FIELDS), size=size)
    total = np.zeros((size, size))
    for field in split.T:  # one at a time: (n, n) memory, not (n, n, fields)
        total += np.sign(field[:, None] - field)
    return _game(total / (2 * FIELDS))


FAMILIES: dict[str, Callable[[int, int], Game]] = {
    "random": random_game,
    "cyclic": cyclic_game,
    "bradley-terry": bradley_terry_game,
    "blotto": blotto_game,
}
DEFAULT_SIZE = 10


def make_game(name: str, size: int | None = None, seed: int | None = None) -> Game:
    """A game of FAMILIES by name, or "paper", which takes neither size nor seed.

    Default: size 10, seed 0. InputError for a size out of range or an option that has no effect.
    """
    if name == "paper":
        for option, value in (("size", size), ("seed", seed)):
            if value is not None:
                raise InputError(f"--{option} has no effect with --game paper, which is 3×3")
        return paper_game()
    size = DEFAULT_SIZE if size is None else size
    seed = 0 if seed is None else seed
    low = 3 if name == "cyclic" else SIZES[0]
    if not low <= size <= SIZES[1]:
        raise InputError(f"--size {size}: a {name} game has {low} to {SIZES[1]} responses")
    if seed < 0:
        raise InputError(f"--seed {seed}: it must be a whole number, 0 or more")
    return FAMILIES[name](size, seed)


def load_empirical(
    run_dir: str | Path, iteration: int | None = None, prompt: int | None = None
) -> tuple[Game, str]:
    """The judged responses to one prompt of a run as a game, and what to call it.

    Reads iterations/NNNN/judgments.parquet. Default: the last iteration that is judged, and its
    first prompt whose strict majorities hold a cycle, or else its first. InputError naming the
    folder, iteration or prompt that is not there.
    """
    import pyarrow as pa  # slow to import, and only this function needs it
    import pyarrow.parquet as pq

    path = _judgments(Path(run_dir), iteration)
    try:
        table = pq.read_table(path, columns=["prompt_id", "matrix"])
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        message = str(error).split("\n")[0]
        raise InputError(f"{path}: not a table of judgments ({message})") from None
    prompts: list[int] = table["prompt_id"].to_pylist()
    if not prompts:
        raise InputError(f"{path}: holds no prompt")
    if prompt is not None and prompt not in prompts:
        raise InputError(
            f"--prompt {prompt}: not in {path}, whose {len(prompts)} prompts are "
            f"{min(prompts)} to {max(prompts)}"
        )
    rows = range(len(prompts)) if prompt is None else [prompts.index(prompt)]
    chosen = rows[0]
    for row in rows:
        if strict_cycle(_square(table["matrix"][row].as_py(), path, prompts[row])) is not None:
            chosen = row
            break
    source = f"{path}, prompt {prompts[chosen]}"
    matrix = check_matrix(_square(table["matrix"][chosen].as_py(), path, prompts[chosen]), source)
    label = f"prompt {prompts[chosen]} of iteration {int(path.parent.name)}, {Path(run_dir).name}"
    return Game(matrix, default_names(len(matrix))), label


def _judgments(run_dir: Path, iteration: int | None) -> Path:
    if not run_dir.is_dir():
        raise InputError(f"--empirical {run_dir}: no such folder; give a run directory")
    folders = RunDirectory(run_dir).iterations()
    found = {t: f.judgments.path for t, f in folders.items() if f.judgments.exists()}
    if not found:
        raise InputError(
            f"--empirical {run_dir}: no iterations/NNNN/judgments.parquet in it; "
            "the judge phase has not run"
        )
    if iteration is not None and iteration not in found:
        known = ", ".join(map(str, found))
        raise InputError(f"--iteration {iteration}: not judged in {run_dir}; judged are {known}")
    return found[max(found) if iteration is None else iteration]


def _square(flat: list[float], path: Path, prompt: int) -> Array:
    """The (K, K) matrix of a row-major list."""
    size = round(len(flat) ** 0.5)
    if size * size != len(flat):
        raise InputError(f"{path}, prompt {prompt}: {len(flat)} entries make no square matrix")
    return np.array(flat, dtype=np.float64).reshape(size, size)


def _game(advantages: Array) -> Game:
    """The game with P − ½ as in the upper triangle of `advantages` (n, n)."""
    upper = np.triu(advantages, 1)
    matrix = 0.5 + (upper - upper.T)
    return Game(matrix, default_names(len(matrix)))
