"""`comal-fast config`: the schema takes what the loader takes, and every option is explained."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from comal_fast.cli import main
from comal_fast.config import known_keys
from forked import python

REPO = Path(__file__).resolve().parents[2]
CONFIGS = sorted(p.relative_to(REPO) for p in (REPO / "configs").rglob("*.yaml"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def schema(capsys: pytest.CaptureFixture[str]) -> Draft202012Validator:
    found = json.loads(said(capsys, "schema"))
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_the_schema_takes_every_shipped_file(name: Path, schema: Draft202012Validator) -> None:
    schema.validate(yaml.safe_load((REPO / name).read_text()))


@pytest.mark.parametrize(
    "tree",
    [
        {"algorithm": {"prox": "dpo", "eta": 0.1}},  # which dpo does not have
        {"algorithm": {"eta": -1.0}},
        {"oracle": {"name": "criteria", "game": "game.json"}},
        {"training": {"learning_rte": 1e-6}},
        {"generation": {"num_generations": 1}},
        {"seed": "one"},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_loader_refuses(
    tree: dict[str, Any], schema: Draft202012Validator
) -> None:
    assert not schema.is_valid(tree)


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for name in known_keys():
        lines = said(capsys, "explain", name).splitlines()
        first, _, meaning = lines[0].partition(": ")
        assert first.split()[0].rstrip(",") in (name, f"{name}.prox"), name
        assert len(meaning) > 10, name
        assert any("default" in line for line in lines), name


def test_an_option_says_its_range_and_what_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "explain", "algorithm.tau_eta_ratio")
    assert "range: ≥ 0 and ≤ 1" in text and "changes: what is computed" in text
    text = said(capsys, "explain", "training.optimizer_offload")
    assert "changes: only how it is computed" in text and "default: false" in text


def test_entries_of_a_mapping_and_what_a_file_rests_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = said(capsys, "explain", "oracle.weights.brief")
    assert "range: ≥ 0" in text and "type: mapping of complete | " in text
    assert "to float" in text and "Annotated" not in text
    assert "rests on" in said(capsys, "explain", "base")


def test_a_choice_names_its_variants_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "explain", "oracle.name")
    for word in ("criteria:", "matrix:", "target_words", "unknown_wins"):
        assert word in text


def test_a_plugin_is_in_both(tmp_path: Path) -> None:
    plugin = tmp_path / "shown_loss.py"
    plugin.write_text(
        "from comal_kernels import Hyper, Prox, register\n"
        "register(Prox('shown', phi=lambda u, c: u * u, dphi=lambda u, c: 2 * u,\n"
        "    anchor=lambda c: c['ref'], uses=('ref',),\n"
        "    hyper={'width': Hyper(1.0, low=0.0, doc='How wide')}))\n"
    )

    def out(*words: str) -> str:  # in a process of its own, since what is registered stays
        command = [python(), "-m", "comal_fast", "config", *words, "--plugin", plugin.name]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    assert "How wide" in out("explain", "algorithm.width")
    assert '"width"' in out("schema")


def test_an_unknown_name_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "oracle.nme"]) == 2
    error = capsys.readouterr().err
    assert "unknown option oracle.nme; the nearest is oracle.name" in error
    assert error.count("\n") == 1
