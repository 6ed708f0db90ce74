"""`comal-fast report` on synthetic run directories, finished and unfinished."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from comal_fast.report import register, write_report
from comal_fast.report.facts import reference_moves, train_runs
from comal_fast.report.html import render
from comal_fast.report.load import load_run
from comal_fast.report.plots import FIGURES
from page import Page
from synthetic import LONG, build, config, iteration_rows, write_training_files

PICTURES = {"win_rate", "win_matrix", "training", "kl", "response_length", "fluency", "oracle",
            "time"}  # fmt: skip


def read(path: Path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


def read_without_pictures(path: Path) -> Page:
    """The page without the seconds that drawing takes."""
    return Page(render(load_run(path), {}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build(tmp_path_factory.mktemp("report") / "run")
    write_report(path)
    return path


@pytest.fixture(scope="module")
def source(finished: Path) -> str:
    return (finished / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_nothing_outside_the_page_is_needed(page: Page, source: str) -> None:
    assert page.loads and all(
        load.startswith(("data:image/png;base64,", "#")) for load in page.loads
    )
    assert "http://" not in source and "https://" not in source
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in source and "@import" not in source


def test_every_link_leads_to_a_section(page: Page, source: str) -> None:
    anchors = [load[1:] for load in page.loads if load.startswith("#")]
    assert len(anchors) >= 8
    assert all(source.count(f'id="{anchor}"') == 1 for anchor in anchors)


def test_verdict_names_the_run_and_its_numbers(page: Page) -> None:
    assert page.verdict == (
        "The final policy has a win rate of 64.4% (95% interval 59.1% to 69.6%) against the "
        "initial one on 64 held-out prompts (model SmolLM2-135M-Instruct, prox loss inpo, seed 7): "
        "the interval excludes 50%, it lies wholly above."
    )


@pytest.mark.parametrize(
    ("interval", "words"),
    [((0.47, 0.41, 0.53), "includes 50%"), ((0.4, 0.33, 0.47), "lies wholly below"),
     ((0.55, 0.5, 0.6), "includes 50%")],
)  # fmt: skip
def test_verdict_claims_no_more_than_the_interval(
    tmp_path: Path, interval: tuple[float, ...], words: str
) -> None:
    path = build(tmp_path / "run", iterations=1)
    file = path / "iterations/0001/evaluation.json"
    content = json.loads(file.read_text())
    content["win_rates"]["0"] = {"mean": interval[0], "ci95": list(interval[1:])}
    file.write_text(json.dumps(content))
    assert words in read_without_pictures(path).verdict


def change_evaluation(run: Path, **content: object) -> None:
    file = run / "iterations/0001/evaluation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **content}))


def test_nine_prompts_are_too_few_for_a_verdict(tmp_path: Path) -> None:
    path = build(tmp_path / "run", iterations=1)
    change_evaluation(path, n_prompts=9, win_rates={"0": {"mean": 0.9, "ci95": [0.7, 1.0]}})
    assert "too few prompts for a verdict: 9, it takes 10" in read_without_pictures(path).verdict
    change_evaluation(path, n_prompts=10)
    assert "excludes 50%" in read_without_pictures(path).verdict


def test_lengths_that_are_not_comparable_are_said_to_be(tmp_path: Path) -> None:
    path = build(tmp_path / "run", iterations=1)
    controlled = {
        "mean": None,
        "ci95": None,
        "overlap": 0.03,
        "note": "not comparable (3% overlap)",
    }
    rate = {"mean": 0.9, "ci95": [0.7, 1.0], "length_controlled": controlled}
    change_evaluation(path, win_rates={"0": rate})
    assert "not comparable (3% overlap)" in read_without_pictures(path).row("1")


def test_matrix_holds_each_pair_and_its_complement(page: Page) -> None:
    head = page.row("Iterate") and next(r for r in page.cells if r[1:2] == ["against 0"])
    start = page.cells.index(head)
    matrix = {row[0]: row[1:] for row in page.cells[start + 1 : start + 5]}
    assert list(matrix) == ["0", "1", "2", "3"]
    assert [matrix[str(t)][t] for t in range(4)] == ["50.0%"] * 4
    assert matrix["3"][1] == "56.2% (51.0% to 61.2%)"
    assert matrix["1"][3] == "43.8% (38.8% to 49.0%)"
    assert matrix["2"][1] == "53.8% (48.2% to 59.1%)"
    assert matrix["0"][1] == "41.9% (37.1% to 46.9%)"


def test_responses_are_whole_escaped_and_flagged(page: Page, source: str) -> None:
    assert "<script" not in source and "<b>&" not in source
    text = "".join(page.text)
    assert "<script>alert('x')</script> & \"more\" {{ 7 * 7 }}" in text
    assert "\x00" not in text
    assert text.count(LONG) == 2 and "SECOND-SAMPLE" not in text
    assert page.tags.count("article") >= 8
    assert "1000 tokens · finished" in text and "1021 tokens · finished" in text
    assert text.count("not finished") == 2
    assert "answer 10 of iterate 0" in text or "answer 9 of iterate 0" in text


def test_times_add_up_and_memory_is_the_highest(page: Page) -> None:
    heads = next(row for row in page.cells if "all phases" in row)
    names = ["generate", "judge", "pair", "logps", "train", "evaluate", "all phases"]
    assert heads[1:] == [*names, "peak memory"]
    total = dict(zip(heads, next(row for row in page.cells if row[0] == "All"), strict=True))
    assert total["train"] == "3 min 00 s"
    assert total["generate"] == "2 min 09 s"
    assert total["evaluate"] == "1 min 13 s"
    assert total["all phases"] == "6 min 56 s"
    assert total["peak memory"] == "3.25 GiB"


def test_config_and_environment_are_listed(page: Page) -> None:
    assert page.row("algorithm.ref_update_interval") == ["algorithm.ref_update_interval", "2"]
    assert page.row("model.revision")[1] == "none"
    assert page.row("pairing.soft_labels")[1] == "false"
    assert page.row("oracle.weights")[1] == "{}"
    assert page.row("versions.torch")[1] == "2.11.0"
    assert page.row("command")[1] == "comal-fast run demo.yaml"


def test_pngs_are_written_and_nothing_else(finished: Path) -> None:
    images = list((finished / "report").iterdir())
    assert {p.name for p in images} == {f"{name}.png" for name in PICTURES}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in images)
    assert not list(finished.glob(".*"))


def test_reference_moves_and_steps_over_iterations(finished: Path) -> None:
    run = load_run(finished)
    assert reference_moves(run) == [3]
    steps = [(t, int(x[0]), int(x[-1])) for t, x, _ in train_runs(run)]
    assert steps == [(1, 1, 30), (2, 31, 60), (3, 61, 90)]


def test_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    folder = path / "iterations/0001"
    folder.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(3, 7)))
    write_training_files(folder, np.random.default_rng(0))
    (folder / "model").rmdir()
    rows = iteration_rows(np.random.default_rng(0), 1)[:2]
    torn = '{"phase": "pair", "iterat'
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + torn)
    page = read(path)
    text = "".join(page.text)
    assert page.verdict == (
        "No verdict yet: iteration 1 of 3 holds samples.parquet, judgments.parquet."
    )
    for line in ("No trained iterate has been evaluated yet", "no matrix", "No optimizer step",
                 "No KL divergence", "No held-out response", "There are no held-out samples",
                 "No peak memory", "No versions"):  # fmt: skip
        assert line in text
    assert "Left out" not in text
    assert {p.stem for p in (path / "report").iterdir()} == {"oracle", "time"}


def test_bare_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\nmodel: {name_or_path: tiny}\n")
    page = read(tmp_path)
    assert page.verdict == "No verdict yet: no phase has finished."
    assert "img" not in page.tags


def test_run_between_iterations_is_judged_by_its_last_iterate(tmp_path: Path) -> None:
    page = read_without_pictures(build(tmp_path / "run", iterations=3, done=2))
    assert page.verdict.startswith(
        "Iterate 2 of 3 (unfinished run) has a win rate of 60.4% (95% interval 55.2% to 65.7%)"
    )
    assert "The run is not finished: iteration 2 of 3 holds" in "".join(page.text)


def test_damaged_files_are_named_and_left_out(tmp_path: Path) -> None:
    path = build(tmp_path / "run")
    (path / "iterations/0002/evaluation.json").write_text('{"iterate": 2, "n_pro')
    (path / "iterations/0000/eval_samples.parquet").write_bytes(b"PAR1 nothing")
    lines = (path / "metrics.jsonl").read_text().splitlines()
    lines[3:3] = ["[1, 2]", json.dumps({"phase": "train", "iteration": 1, "step": 99,
                                        "loss": None, "grad_norm": "big"})]  # fmt: skip
    lines.append(json.dumps({"phase": "train", "iteration": 3, "step": 31, "loss": float("nan")}))
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = read(path)
    text = "".join(page.text)
    assert "Left out: iterations/0002/evaluation.json cannot be read" in text
    assert "Left out: iterations/0000/eval_samples.parquet cannot be read" in text
    assert "Left out: metrics.jsonl: line 4 is no row of metrics" in text
    assert "64.4%" in page.verdict


def test_report_can_be_written_again_and_drops_stale_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: FIGURES[name] for name in ("training", "kl")}
    monkeypatch.setattr("comal_fast.report.html.FIGURES", few)
    path = build(tmp_path / "run", iterations=1)
    first = write_report(path).read_bytes()
    assert write_report(path).read_bytes() == first
    (path / "metrics.jsonl").unlink()
    write_report(path)
    assert {p.stem for p in (path / "report").iterdir()} == {"kl"}


def test_only_the_initial_policy_is_evaluated(tmp_path: Path) -> None:
    path = build(tmp_path / "run", iterations=2, done=0)
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("model:", "model:\n  gguf_file: m/Tiny.Q4.gguf"))
    page = read(path)
    text = "".join(page.text)
    assert page.verdict.startswith("No verdict yet: only the initial policy is there")
    assert "No trained iterate has been evaluated yet" in text and "Tiny.Q4" in page.text
    written = {p.stem for p in (path / "report").iterdir()}
    assert written == {"response_length", "fluency", "time"}


@pytest.mark.parametrize("content", [None, "seed: [", "- a\n- b\n"])
def test_what_is_no_run_directory_is_one_clear_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "run"
    with pytest.raises(ValueError, match="run: no such run directory"):
        write_report(path)
    path.mkdir()
    if content is not None:
        (path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"config\.yaml") as error:
        write_report(path)
    assert "\n" not in str(error.value)
    assert not (path / "report.html").exists()


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    path = build(tmp_path / "run", iterations=1)
    (path / "report").write_text("a file where the folder belongs")
    with pytest.raises(ValueError, match=r"win_rate\.png: cannot be written"):
        write_report(path)
    assert not (path / "report.html").exists()


def test_command_prints_the_path_and_the_verdict(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    args = parser.parse_args(["report", str(finished)])
    assert args.run(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(finished / "report.html")
    assert lines[1].startswith("The final policy has a win rate of 64.4%")


def test_neither_torch_nor_transformers_nor_pyplot_is_imported(finished: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from comal_fast.report import write_report;"
        "assert 'matplotlib' not in sys.modules; write_report(Path(sys.argv[1]));"
        "bad = {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, str(finished)], check=True)


def test_what_fired_is_shown_with_its_evidence_and_how_it_ended(tmp_path: Path) -> None:
    path = build(tmp_path / "run", iterations=3, done=2)
    text = "it loses to iterate 0: win rate 40.0%"
    finding = {"name": "degradation", "action": "rollback", "text": text, "evidence": {}}
    for t, findings in ((1, []), (2, [finding])):
        content = {"key": "0" * 32, "iterate": t, "findings": findings, "distances": {}}
        (path / f"iterations/{t:04d}/diagnostics.json").write_text(json.dumps(content))
    page = read_without_pictures(path)
    assert ["2", "degradation", "rollback", text] in page.cells
    assert "2 iterations checked: degradation." in "".join(page.text)
    summary = {"result": 1, "iterations": 2, "findings": [{"iteration": 2, **finding}],
               "ended": {"action": "rollback", "by": "degradation", "text": text}}  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    page = read_without_pictures(path)
    assert page.verdict.startswith("Iterate 1 of 3 has a win rate of 58.1%")
    assert "Ended by a diagnostic after iteration 2" in "".join(page.text)
    (path / "summary.json").write_text(json.dumps({**summary, "result": 0}))
    assert "rolled back to the initial policy" in read_without_pictures(path).verdict
