"""What was answered is never asked again: across kills, runs, processes and ranks."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comal_fast.config import load_config
from comal_fast.config.oracle import BradleyTerryConfig, MixtureConfig, PythonConfig
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.oracles import Comparison, Message, Oracle, make_oracle, self_comparison
from comal_fast.store.answers import Answers
from comal_fast.store.directory import RunDirectory
from forked import python
from rewards import save_reward

SEVERAL = [
    self_comparison((Message("user", f"Say {i}."),), [f"{'a' * j} {i * j % 7}" for j in range(4)])
    for i in range(9)
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward(tmp_path_factory.mktemp("reward"))


def reward(folder: Path, **given: Any) -> BradleyTerryConfig:
    options = {"model": str(folder), "dtype": "float32", "device": "cpu", "batch_size": 8}
    return BradleyTerryConfig(**{**options, **given})


def asked(oracle: Oracle, name: str = "asked") -> float:
    return oracle.counts()[f"oracle/{name}"]


def test_cache_on_is_cache_off(llama: Path, tmp_path: Path) -> None:
    """Bit for bit, stopped after any comparison; another temperature asks for nothing."""
    plain = list(make_oracle(reward(llama)).compare(SEVERAL))
    for stop in (0, 1, 3, 8):
        path = tmp_path / f"{stop}.sqlite"
        first = make_oracle(reward(llama), path)
        for _, matrix in zip(range(stop), first.compare(SEVERAL), strict=False):
            assert matrix is not None
        second = make_oracle(reward(llama), path)
        np.testing.assert_array_equal(list(second.compare(SEVERAL)), plain)
        assert asked(first) + asked(second) == 4 * len(SEVERAL)
        assert asked(second, "known") == asked(first)
        third = make_oracle(reward(llama, temperature=2.0), path)
        list(third.compare(reversed(SEVERAL)))
        assert asked(third) == 0
    other = make_oracle(reward(llama, max_length=4095, dtype="bfloat16"), path)
    list(other.compare(SEVERAL))
    assert asked(other, "known") == 0


def test_the_whole_conversation_counts(llama: Path, tmp_path: Path) -> None:
    same, other = (Message("user", "x"),), (Message("system", "y"), Message("user", "x"))
    oracle = make_oracle(reward(llama), tmp_path / "cache")
    list(oracle.compare([Comparison(same, ["a", "a"], ["b"]), Comparison(other, ["a"], ["b"])]))
    assert asked(oracle) == 4


def test_members_share_a_file_and_not_their_answers(llama: Path, tmp_path: Path) -> None:
    other = save_reward(tmp_path / "other", seed=1)
    options = MixtureConfig(members=[reward(llama), reward(other)])
    plain = list(make_oracle(options).compare(SEVERAL))
    for known in (0, 72):
        oracle = make_oracle(options, tmp_path / "cache")
        np.testing.assert_array_equal(list(oracle.compare(SEVERAL)), plain)
        assert (asked(oracle), asked(oracle, "known")) == (72 - known, known)


def test_a_file_of_ones_own_and_none(llama: Path, tmp_path: Path) -> None:
    own, auto = tmp_path / "deep" / "own", tmp_path / "auto"
    list(make_oracle(reward(llama, cache=str(own)), auto).compare(SEVERAL[:1]))
    list(make_oracle(reward(llama, cache=None), auto).compare(SEVERAL[:1]))
    assert own.is_file() and not auto.exists()


def _ask(path: Path, folder: Path, seed: int) -> list[Any]:
    items = list(SEVERAL)
    random.Random(seed).shuffle(items)
    return [m.tolist() for m in make_oracle(reward(folder), path).compare(items)]


def test_processes_share_it(llama: Path, tmp_path: Path) -> None:
    with get_context("spawn").Pool(3) as pool:
        path = tmp_path / "cache"
        results = pool.starmap(_ask, [(path, llama, seed) for seed in range(3)])
    assert [len(r) for r in results] == [9, 9, 9]
    oracle = make_oracle(reward(llama), path)
    list(oracle.compare(SEVERAL))
    assert asked(oracle) == 0


MAKER = """
import sys
from pathlib import Path
from comal_fast.store.answers import Answers

cache = Answers(Path(sys.argv[1]))
sys.stdin.readline()
cache.read([b"key"])
cache.spend("who", 1, 2)
"""


def test_processes_make_it_at_once(tmp_path: Path) -> None:
    for round_ in range(5):
        command = [python(), "-c", MAKER, str(tmp_path / str(round_))]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(5)
        ]
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [p.communicate(timeout=60)[1] for p in started] == [""] * 5
        assert Answers(tmp_path / str(round_)).spend("who", 0, 0) == (5, 10)


def test_what_is_no_cache(tmp_path: Path) -> None:
    def say(path: Path) -> str:
        with pytest.raises(InputError, match="oracle.cache") as caught:
            Answers(path).read([b"key"])
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    text = tmp_path / "text"
    text.write_text("never a database " * 99)
    assert "not a database" in say(text) and text.read_text().startswith("never")
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE mine (x)")
    assert "another program's" in say(foreign)
    say(tmp_path)  # a folder
    say(text / "below")
    newer = tmp_path / "newer"
    Answers(newer).write({})
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "another version" in say(newer)


JUDGE = """
import time
import numpy as np

def judge(comparisons):
    for c in comparisons:
        with open({log!r}, "a") as log:
            log.write(f"{{c.prompt}}\\n")
    time.sleep(0.01)
    return [
        [[0.5 + 0.4 * np.sign(len(a) - len(b)) for b in c.right] for a in c.left]
        for c in comparisons
    ]
"""
DRIVER = """
import sys
from pathlib import Path
from comal_fast.config.oracle import PythonConfig
from comal_fast.oracles import Message, make_oracle, self_comparison

items = [self_comparison((Message("user", str(i)),), ["a", "bb", "ccc"]) for i in range(200)]
oracle = make_oracle(PythonConfig(function=sys.argv[1], batch_size=1), Path(sys.argv[2]))
print("ready", flush=True)
for matrix in oracle.compare(items):
    pass
print("done", flush=True)
"""


def test_killed_at_random_instants(tmp_path: Path) -> None:
    """Nothing is asked twice, but what was under way when the kill came."""
    log, cache = tmp_path / "log", tmp_path / "cache"
    (tmp_path / "judge.py").write_text(JUDGE.format(log=str(log)))
    command = [python(), "-c", DRIVER, f"{tmp_path}/judge.py:judge", str(cache)]
    generator, kills, done = random.Random(0), 0, False
    while not done:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kills < 4:
            time.sleep(generator.uniform(0.05, 0.7))
            process.kill()
            kills += 1
        done = "done" in process.stdout.read()
        process.wait()
    lines = log.read_text().splitlines()
    assert set(lines) == {str(i) for i in range(200)}
    assert len(lines) - 200 <= kills


def test_a_run_goes_on_judging(tiny_run: Path, tmp_path: Path) -> None:
    """The second half of its life asks for what the first did not; a shared file for nothing."""
    log = tmp_path / "log"
    (tmp_path / "judge.py").write_text(JUDGE.format(log=str(log)))
    judge = {"name": "python", "function": f"{tmp_path}/judge.py:judge"}
    text = tiny_run.read_text()
    shared = {**judge, "cache": str(tmp_path / "shared.sqlite")}
    tiny_run.write_text(text.replace("oracle: {target_words: 2}", f"oracle: {json.dumps(judge)}"))
    config = load_config(tiny_run, ["algorithm.iterations=1"])
    run_all(config)
    directory = RunDirectory(config.output_dir)
    assert directory.oracle_cache.is_file()
    calls = len(log.read_text().splitlines())
    rows = [r for r in directory.rows() if r["phase"] == "judge"]
    assert rows[0]["oracle/asked"] == 5 and rows[0]["oracle/known"] == 0
    judgments = directory.iteration(1).judgments
    before = judgments.read()
    judgments.path.unlink()
    run_all(config)
    assert judgments.read().equals(before)
    assert len(log.read_text().splitlines()) == calls

    tiny_run.write_text(text.replace("oracle: {target_words: 2}", f"oracle: {json.dumps(shared)}"))
    for name in ("a", "b"):
        run_all(load_config(tiny_run, ["algorithm.iterations=1", f"output_dir={tmp_path}/{name}"]))
    assert len(log.read_text().splitlines()) == 2 * calls
    assert not (tmp_path / "a" / "oracle_cache.sqlite").exists()


def test_both_orders_go_in_batches(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = JUDGE.format(log=str(log))
    mark = f"open({str(log)!r}, 'a').write('.\\n')"
    (tmp_path / "judge.py").write_text(code.replace("time.sleep(0.01)", mark))
    options = PythonConfig(function=f"{tmp_path}/judge.py:judge", both_orders=True, batch_size=4)
    list(make_oracle(options).compare(SEVERAL))
    calls = log.read_text().splitlines().count(".")
    assert calls == -(-2 * len(SEVERAL) // 4)


def test_answers_that_changed_are_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And what the first layout held, without checksums, is taken over."""
    path = tmp_path / "c.sqlite"
    kept = Answers(path)
    kept.write({b"a": np.array([0.25, 1.0]), b"b": np.array([0.5])})
    kept.close()
    with sqlite3.connect(path) as connection:
        ((value,),) = connection.execute("SELECT value FROM answers WHERE key = ?", [b"a"])
        flipped = bytes([value[0] ^ 16]) + value[1:]
        connection.execute("UPDATE answers SET value = ? WHERE key = ?", [flipped, b"a"])
    assert kept.read([b"a", b"b"]).keys() == {b"b"}
    assert "1 answers are damaged" in capsys.readouterr().out
    kept.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM answers")
        older = np.array([0.125]).tobytes()
        connection.execute("INSERT INTO answers VALUES (?, ?)", [b"c", older])
        connection.execute("PRAGMA user_version = 1")
    assert kept.read([b"c"])[b"c"].tolist() == [0.125]
    kept.close()
    assert kept.read([b"c"])[b"c"].tolist() == [0.125]
