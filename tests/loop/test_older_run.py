"""A run directory and configurations that version 0.1 wrote: read, compared, gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from comal_fast.cli import main
from comal_fast.config import load_config, load_saved, to_dict
from comal_fast.context import Context
from comal_fast.errors import InputError
from comal_fast.loop import open_run
from comal_fast.model.load import weight_files
from comal_fast.store.artefacts import make_key
from comal_fast.store.directory import PHASES, RunDirectory
from comal_fast.store.files import hash_files

DATA = Path(__file__).resolve().parents[1] / "data"
SAVED = sorted((DATA / "configs_0_1").glob("*.yaml"))


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A copy of the run, whose paths are relative to the working directory."""
    shutil.copytree(DATA / "run_0_1", tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return RunDirectory("run")


def times(run: RunDirectory) -> dict[str, int]:
    """When each file was written, but for findings, whose checks are others now."""
    files = (f for f in run.iterations_folder.rglob("*") if f.is_file())
    return {str(f): f.stat().st_mtime_ns for f in files if f.name != "diagnostics.json"}


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, but for those of findings."""
    return [row for row in run.rows() if row["phase"] != "diagnose"]


def test_finished_run_is_not_repeated(older: RunDirectory) -> None:
    """Nor where training was told to save memory, which 0.1 took for another result."""
    before, logged = times(older), rows(older)
    assert load_config("tiny.yaml").training.gradient_checkpointing
    assert main(["run", "tiny.yaml"]) == 0
    assert times(older) == before and rows(older) == logged
    assert older.report.is_file()


def test_goes_on_where_it_was_left(older: RunDirectory) -> None:
    for artefact in older.iteration(2).finished()[2:]:  # from the pairs on
        artefact.discard()
    first = {f: t for f, t in times(older).items() if "0002" not in f}
    assert main(["run", "tiny.yaml"]) == 0
    assert first.items() <= times(older).items()
    assert {a.phase for a in older.iteration(2).finished()} == set(PHASES)
    samples = older.iteration(2).samples.read()  # 0.1's own: no conversation in it
    assert "messages" not in samples.column_names


def test_report_compare_and_the_game(older: RunDirectory, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "run"]) == 0
    assert "Iterate" in (said := capsys.readouterr().out) or "final policy" in said
    assert main(["compare", "run", "--json", "out.json"]) == 0
    assert json.loads(Path("out.json").read_text())["names"] == ["initial", "π_1", "π_2"]
    assert main(["game", "--empirical", "run"]) == 0


@pytest.mark.parametrize("path", SAVED, ids=lambda p: p.stem)
def test_saved_configurations_load(path: Path, tmp_path: Path) -> None:
    """They hold every variant's options; written down again they hold the chosen one's."""
    import yaml

    config = load_saved(path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert load_saved(tmp_path / "config.yaml") == config
    then = yaml.safe_load(path.read_text())
    for group, now in to_dict(config).items():
        kept = then.get(group, now)
        assert now == ({n: kept.get(n, now[n]) for n in now} if isinstance(now, dict) else kept), (
            group
        )


@pytest.mark.parametrize(
    "option", [None, "model.attn_implementation=sdpa", "model.liger_kernels=off"]
)
def test_the_initial_policy_has_the_key_that_0_1_gave(tiny_run: Path, option: str | None) -> None:
    config = load_config(tiny_run, [option] if option else [])
    context = Context(config)
    weights = hash_files(weight_files(config.model.name_or_path, None))
    options = config.model.model_dump() | {"name_or_path": None, "device": "cpu"}
    for later in ("lora", "quantization", "trust_remote_code", "pickled_weights"):
        del options[later]
    assert context.policies.key(0) == make_key("model", weights, options)


def test_a_run_of_a_gpu_is_opened_where_there_is_none(tiny_run: Path) -> None:
    """To merge or to compare; only what runs a model needs its attention."""
    config = load_config(tiny_run)
    update = {"device": "auto", "attn_implementation": "flash_attention_2"}
    of_a_gpu = config.model_copy(update={"model": config.model.model_copy(update=update)})
    assert Context(of_a_gpu).policies.load(0) is not None
    with pytest.raises(InputError, match="flash_attention_2 needs"), open_run(of_a_gpu):
        pass
