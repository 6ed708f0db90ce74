"""Grids from words, and what two configurations have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from comal_fast.config import load_config
from comal_fast.sweep.grid import expand, full_override, parse_axes
from comal_fast.sweep.reuse import common_iterations


def test_short_names_and_single_values(tiny_run: Path) -> None:
    axes, fixed = parse_axes(
        ["tau_eta_ratio=0.1,1", "algorithm.ref_update_interval=1,2,3", "learning_rate=1e-4"]
    )
    assert [(a.key, a.short) for a in axes] == [
        ("algorithm.tau_eta_ratio", "tau_eta_ratio"),
        ("algorithm.ref_update_interval", "ref_update_interval"),
    ]
    assert fixed == ["training.learning_rate=1e-4"]
    folder, cells = expand(str(tiny_run), axes, [*fixed, full_override("iterations=4")])
    assert folder == tiny_run.parent / "run" and len(cells) == 6
    assert cells[1].name == "tau_eta_ratio=0.1,ref_update_interval=2"
    assert cells[1].directory.path == folder / "cells" / cells[1].name
    assert cells[5].config.algorithm.tau_eta_ratio == 1
    assert cells[5].config.algorithm.ref_update_interval == 3
    assert {c.config.training.learning_rate for c in cells} == {1e-4}
    assert {c.config.algorithm.iterations for c in cells} == {4}
    assert len({c.directory.path for c in cells}) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tau_eta_ratio"], "expected key=value"),
        (["tau_eta_ratio=0.1,"], "expected key=value"),
        (["tau_eta_ratio=0.1,0.1"], "a value stands there twice"),
        (["seed=0,1", "seed=1,2"], "given twice"),
        (["seed=1"], "no option has two values"),
        (["num_generations=1,2"], "generation.num_generations or evaluation.num_generations"),
        (["tau_eta_ration=0,1"], "nearest is algorithm.tau_eta_ratio"),
        (["output_dir=a,b"], "cells have their own folders"),
    ],
)
def test_bad_grids(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axes(words)


def test_a_bad_cell_is_named_before_any_work(tiny_run: Path) -> None:
    axes, _ = parse_axes(["tau_eta_ratio=0.5,2"])
    with pytest.raises(ValueError, match=r"cell tau_eta_ratio=2: algorithm.tau_eta_ratio: 2"):
        expand(str(tiny_run), axes, [])
    assert not (tiny_run.parent / "run").exists()


@pytest.mark.parametrize(
    ("one", "two", "common"),
    [
        ([], [], 6),
        (["algorithm.ref_update_interval=2"], ["algorithm.ref_update_interval=5"], 2),
        (["algorithm.iterations=3"], [], 3),
        (["algorithm.tau_eta_ratio=0.1"], ["algorithm.tau_eta_ratio=1"], 0),
        (["training.learning_rate=1e-4"], [], 0),
        (["seed=1"], [], None),
        (["generation.temperature=0.5"], [], None),
    ],
)
def test_common_iterations(
    tiny_run: Path, one: list[str], two: list[str], common: int | None
) -> None:
    base = ["algorithm.iterations=6"]
    a, b = (load_config(tiny_run, [*base, *options]) for options in (one, two))
    assert common_iterations(a, b) == common == common_iterations(b, a)
