"""Every log sink is told a whole run, an interrupted one included, and its own library reads it."""

from __future__ import annotations

import csv
import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from comal_fast import sinks
from comal_fast.cli import main
from comal_fast.config import load_config
from comal_fast.loop import run_all
from comal_fast.report.samples import load_comparisons
from comal_fast.sinks import follow
from comal_fast.store.directory import PHASES, RunDirectory
from comal_fast.training.trainer import Trainer

NAMES = ["csv", "mlflow", "tensorboard", "trackio", "wandb"]
REPORT = ["evaluation.report=true"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the services keep what is theirs; none of them may call home."""
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")) and name != "TRACKIO_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)  # the folder is all tests', see conftest
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_whole(name: str, tiny_run: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended by Ctrl-C between two checkpoints, gone on with, given again: each row once."""
    pytest.importorskip(name)
    options = [f"logging={name}", "training.save_steps=3", *REPORT]
    step = Trainer.optimizer_step

    def stop(self: Trainer) -> dict[str, Any]:
        row = step(self)
        if self.iteration == 2 and self.step == 5:
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "optimizer_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_all(load_config(tiny_run, options))
    config = load_config(tiny_run, options)
    directory = RunDirectory(config.output_dir)
    before = len(directory.rows())
    for _ in range(2):
        run_all(config)
    rows = directory.rows()
    assert len(rows) > before > 10
    told = READERS[name](directory)
    assert told["points"] == expected(rows)
    assert told["responses"] == {1, 2}
    assert told["config"]["algorithm.eta"] == pytest.approx(0.05)
    summary = directory.read_summary()
    assert summary is not None
    if name != "csv":
        assert told["win_rate"] == pytest.approx(summary["win_rate"]["mean"])
        assert told["pictures"] >= {"win_rate", "training", "time"}


def point(name: str, axis: Any, value: float) -> tuple[str, int, str | None]:
    """What is compared; a step that is made again takes another time."""
    timed = name.split("/")[1] in ("perf", "mem")
    return name, int(axis), None if timed else f"{value:.3e}"


def expected(rows: list[dict[str, Any]]) -> Counter[Any]:
    """(name, step, value) → how often, of the numbers of metrics.jsonl."""
    steps = Counter(row["iteration"] for row in rows if row["phase"] == "train")
    return Counter(
        point(f"{row['phase']}/{name}", axis, value)
        for row in rows
        for axis in [
            steps[1] * (row["iteration"] - 1) + row["step"]
            if row["phase"] == "train"
            else row["iteration"]
        ]
        for name, value in row.items()
        if isinstance(value, float) and math.isfinite(value)
    )


def _floats(points: Counter[Any], rows: RunDirectory) -> Counter[Any]:
    """Only measures that metrics.jsonl has as floats: it counts responses and pairs too."""
    names = {f"{r['phase']}/{n}" for r in rows.rows() for n, v in r.items() if isinstance(v, float)}
    return Counter({point: n for point, n in points.items() if point[0] in names})


def _csv(directory: RunDirectory) -> dict[str, Any]:
    folder = directory.logging / "csv"
    points: Counter[Any] = Counter()
    for phase in ("generate", "judge", "pair", "logps", "train", "evaluate", "diagnose"):
        with (folder / f"{phase}.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                axis = int(row.pop("step")), int(row.pop("iteration"))
                points.update(
                    point(f"{phase}/{name}", axis[phase != "train"], float(value))
                    for name, value in row.items()
                    if value
                )
    return {
        "points": _floats(points, directory),
        "responses": {int(p.stem.split("-")[1]) for p in folder.glob("responses-*.csv")},
        "config": {"algorithm.eta": 0.05},  # config.yaml is beside it
    }


def _tensorboard(directory: RunDirectory) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    sizes = {"scalars": 0, "tensors": 0, "images": 0}
    read = EventAccumulator(str(directory.logging / "tensorboard"), size_guidance=sizes)
    read.Reload()
    tags = read.Tags()
    points = Counter(
        point(tag, event.step, event.value)
        for tag in tags["scalars"]
        for event in read.Scalars(tag)
    )
    text = make_ndarray(read.Tensors("config/text_summary")[0].tensor_proto).item().decode()
    config = json.loads(text.strip().strip("`"))["config"]
    return {
        "points": _floats(points, directory),
        "responses": {event.step for event in read.Tensors("responses/text_summary")},
        "config": {"algorithm.eta": config["algorithm"]["eta"]},
        "win_rate": read.Scalars("result/win_rate/mean")[-1].value,
        "pictures": {tag.split("/")[1] for tag in tags["images"]},
    }


def _wandb(directory: RunDirectory) -> dict[str, Any]:
    records = [
        record
        for file in sorted(directory.logging.glob("wandb/wandb/offline-run-*/*.wandb"))
        for record in _records(file)
    ]
    points: Counter[Any] = Counter()
    found: dict[str, Any] = {"responses": set(), "config": {}, "pictures": set(), "win_rate": None}
    for record in records:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            for name, value in row.items():
                phase = name.split("/")[0]
                if phase in PHASES:
                    axis = row["step" if phase == "train" else "iteration"]
                    points[point(name, axis, value)] += 1
                if phase == "report":
                    found["pictures"].add(name.split("/")[1])
            if "responses/path" in row:
                (path,) = directory.logging.glob(f"wandb/wandb/*/files/{row['responses/path']}")
                found["responses"].add(json.loads(path.read_text())["data"][0][0])
        elif kind == "run":
            for item in record.run.config.update:
                if item.key == "algorithm":
                    found["config"]["algorithm.eta"] = json.loads(item.value_json)["eta"]
        elif kind == "summary":
            for item in record.summary.update:
                if item.key == "result/win_rate/mean":
                    found["win_rate"] = json.loads(item.value_json)
    assert len({r.run.run_id for r in records if r.WhichOneof("record_type") == "run"}) == 1
    return found | {"points": _floats(points, directory)}


def _records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a log of LevelDB's format, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = file.read_bytes(), 7, b""  # behind the file's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def _trackio(directory: RunDirectory) -> dict[str, Any]:
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    project = os.environ["TRACKIO_PROJECT"]
    (run,) = Api().runs(project)
    points: Counter[Any] = Counter()
    found: dict[str, Any] = {"responses": set(), "pictures": set()}
    for row in SQLiteStorage.get_logs(project, run.name):
        for name, value in row.items():
            phase = name.split("/")[0]
            if isinstance(value, int | float) and phase in PHASES:
                axis = row["step"] if phase == "train" else row.get("iteration")
                points[point(name, axis, value)] += 1
            if name.startswith("report/"):
                found["pictures"].add(name.split("/")[1])
        if "responses" in row:
            found["responses"].add(row["iteration"])
        found["win_rate"] = row.get("result/win_rate/mean", found.get("win_rate"))
    eta = run.config["algorithm"]["eta"]
    return found | {"points": _floats(points, directory), "config": {"algorithm.eta": eta}}


def _mlflow(directory: RunDirectory) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("comal-fast")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    points: Counter[Any] = Counter()
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            points[point(name, metric.step, metric.value)] += 1
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "env.json", "summary.json", "report.html", "config.json"} <= files
    pictures = {Path(f.path).stem for f in client.list_artifacts(run.info.run_id, "report")}
    return {
        "points": _floats(points, directory),
        "responses": {int(Path(f).stem.split("-")[1]) for f in files if f.startswith("responses")},
        "config": {"algorithm.eta": float(run.data.params["algorithm.eta"])},
        "win_rate": run.data.metrics["result/win_rate/mean"],
        "pictures": pictures,
    }


READERS = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
}


def test_other_policies(tiny_run: Path, home: Path) -> None:
    """Another step size in the same folder makes other rows: another run, told from its start."""
    brief = ["logging=csv", "algorithm.iterations=1", "training.num_train_epochs=1"]
    run_all(load_config(tiny_run, brief))
    config = load_config(tiny_run, [*brief, "training.learning_rate=2e-2"])
    directory = RunDirectory(config.output_dir)
    ledger = directory.logging / "csv.json"
    first = json.loads(ledger.read_text())
    run_all(config)
    second = json.loads(ledger.read_text())
    assert first["id"] != second["id"]
    assert {own: n for own, (n, _) in first["told"].items()} == {
        own: n for own, (n, _) in second["told"].items()
    }
    assert first["tables"]["responses 1"] != second["tables"]["responses 1"]
    assert _csv(directory)["points"] == expected(directory.rows())
    with (directory.logging / "csv/responses-1.csv").open(newline="") as stream:
        told = [row["π_1"] for row in csv.DictReader(stream)]
    _, compared = load_comparisons(directory, [], 1)
    assert told == [each.after.text for each in compared]


def _listen(monkeypatch: pytest.MonkeyPatch, *sinks_: Any) -> None:
    monkeypatch.setattr(follow, "_functions", [])
    for sink in sinks_:
        sinks.register(sink)


BRIEF = ["algorithm.iterations=1", "training.num_train_epochs=1"]


def test_registered(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins' functions are told each row once, from whichever process it comes."""
    told: tuple[list[Any], list[Any]] = ([], [])
    _listen(monkeypatch, *(lambda row, own=own: own.append(dict(row)) for own in told))
    config = load_config(tiny_run, [*BRIEF, "phases=process"])
    for _ in range(2):
        run_all(config)
        rows = RunDirectory(config.output_dir).rows()
        assert told[0] == rows and told[1] == rows


def test_added_later(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another option, too: it is told what that makes, not what was there before."""
    told: list[Any] = []
    _listen(monkeypatch)
    run_all(load_config(tiny_run, BRIEF))
    _listen(monkeypatch, lambda row: told.append(dict(row)))
    config = load_config(tiny_run, [*BRIEF, "training.learning_rate=2e-3"])
    run_all(config)
    rows = RunDirectory(config.output_dir).rows()
    assert sorted(map(str, told)) == sorted(map(str, rows))


def test_another_evaluation(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made anew with another result is told again, by the same run."""
    told: list[Any] = []
    _listen(monkeypatch, lambda row: told.append(dict(row)))
    run_all(load_config(tiny_run, BRIEF))
    before = len(told)
    config = load_config(tiny_run, [*BRIEF, "evaluation.num_generations=2"])
    run_all(config)
    rows = RunDirectory(config.output_dir).rows()
    assert all(row["phase"] in ("evaluate", "diagnose") for row in told[before:])
    evaluated = [row for row in told[before:] if row["phase"] == "evaluate"]
    (after,) = (row for row in rows if (row["phase"], row["iteration"]) == ("evaluate", 1))
    assert after in evaluated  # π_0's says the same as before: its responses are as long


@pytest.mark.parametrize("place", [0, 3])
def test_failing(
    place: int, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sink that fails is named once; the run ends as ever, and it is told the rest later."""
    broken, told = [True], []

    def sink(row: Any) -> None:
        if broken[0] and len(told) == place:
            raise OSError("the disk of the service is full")
        told.append(dict(row))

    _listen(monkeypatch, sink)
    config = load_config(tiny_run, BRIEF)
    run_all(config)
    assert capsys.readouterr().out.count("the disk of the service is full") == 1
    broken[0] = False
    run_all(config)
    assert told == RunDirectory(config.output_dir).rows()


def test_no_answer(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service that hangs holds up neither the run nor the other sinks."""
    told: list[Any] = []
    answer = Event()
    monkeypatch.setattr(follow, "PATIENCE", 0.5)
    monkeypatch.setattr(follow, "SECONDS", 0.05)
    _listen(monkeypatch, lambda row: answer.wait(60), lambda row: told.append(dict(row)))
    config = load_config(tiny_run, BRIEF)
    run_all(config)
    assert "no answer for" in capsys.readouterr().out
    assert told == RunDirectory(config.output_dir).rows()
    answer.set()


def test_refused(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unknown name, or a library that is not there, before anything is written."""
    assert main(["run", str(tiny_run), "logging=[csv, comet]"]) == 2
    assert "logging" in capsys.readouterr().err
    monkeypatch.setattr("comal_fast.sinks.base.find_spec", lambda name: None)
    assert main(["run", str(tiny_run), "logging=wandb"]) == 2
    assert "pip install comal-fast[wandb]" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("says", "there"), [(200, True), (401, True), (405, True), (502, False), (None, False)]
)
@pytest.mark.parametrize("proxy", [False, True])
def test_reachable(
    says: int | None, there: bool, proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers anything is there; one of which a proxy says that it is away, not."""
    from comal_fast.sinks.base import reachable

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(says or 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    here = f"http://127.0.0.1:{server.server_port}"
    address = "http://service.invalid/api" if proxy else here
    if proxy:
        monkeypatch.setenv("http_proxy", here)
    with server:
        if says is not None:
            Thread(target=server.serve_forever, daemon=True).start()
            assert reachable(address.replace("//", "//me:secret@"), 5) is there
            server.shutdown()
    if says is None:
        assert not reachable(address, 5)
    assert len(asked) == (says is not None) and all(address in a or not proxy for a in asked)
    assert not reachable("", 1)
