"""A judge behind a server, over real sockets: what it says, what it costs, how it fails."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from comal_fast.config import load_config
from comal_fast.config.oracle import EndpointConfig
from comal_fast.data.conversation import Message
from comal_fast.errors import InputError
from comal_fast.loop import run_all
from comal_fast.oracles import Comparison, make_oracle, self_comparison
from comal_fast.oracles.endpoint import label_probability, verdict
from comal_fast.oracles.template import Template
from comal_fast.store.directory import RunDirectory
from forked import python
from openai_server import TEMPLATE, Server, gap, serving

TEXTS = ["a", "bbbb", "cccccccccc"]
ITEMS = [
    self_comparison((Message("user", f"Say {i}."),), [f"{t}{i}" for t in TEXTS]) for i in range(6)
]
ORDERS = 6 * 6


@pytest.fixture
def template(tmp_path: Path) -> Path:
    file = tmp_path / "template.txt"
    file.write_text(TEMPLATE)
    return file


def options(server: Server, template: Path, **given: Any) -> EndpointConfig:
    chosen = {"base_url": server.url, "model": "judge", "template": str(template)}
    return EndpointConfig(**{**chosen, "max_concurrency": 4, "timeout": 5.0, **given})


def averaged(item: Comparison, first: Any) -> np.ndarray:
    """Both orders of what `first` says of a pair of texts."""
    return np.array(
        [
            [0.5 if a == b else (first(a, b) + 1 - first(b, a)) / 2 for b in item.right]
            for a in item.left
        ]
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comal_fast.oracles.client._FIRST_WAIT", 0.01)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_log_probs(temperature: float, template: Path) -> None:
    with serving(delay=0.01) as server:
        oracle = make_oracle(options(server, template, temperature=temperature))
        matrices = list(oracle.compare(ITEMS))
    for item, matrix in zip(ITEMS, matrices, strict=True):
        wanted = averaged(item, lambda a, b: expit(gap(a, b) / temperature))
        np.testing.assert_allclose(matrix, wanted, atol=1e-9)
    assert len(server.asked) == len(set(server.asked)) == ORDERS
    assert 1 < server.most <= 4
    counts = oracle.counts()
    assert counts["oracle/requests"] == ORDERS and counts["oracle/tokens"] == 10 * ORDERS
    assert counts["oracle/undecided"] == counts["oracle/retries"] == 0
    assert server.bodies[0]["logprobs"] and server.bodies[0]["temperature"] == 0
    assert server.keys == {None}


@pytest.mark.parametrize("how", ["none given", "refused", "asked for"])
def test_sampled_verdicts(how: str, template: Path) -> None:
    """Of eight answers six name what it thinks."""
    script = ["400"] if how == "refused" else []
    with serving(*script, logprobs=how == "refused") as server:
        ask = "verdicts" if how == "asked for" else "auto"
        oracle = make_oracle(options(server, template, ask=ask))
        matrices = list(oracle.compare(ITEMS[:2]))
    for item, matrix in zip(ITEMS, matrices, strict=False):
        np.testing.assert_allclose(
            matrix, averaged(item, lambda a, b: 0.75 if gap(a, b) > 0 else 0.25)
        )
    extra = 0 if how == "asked for" else 1  # found out by one request
    assert len(server.asked) == 12 + extra
    assert server.bodies[-1]["n"] == 8 and "logprobs" not in server.bodies[-1]


def test_log_probs_or_nothing(template: Path) -> None:
    with serving(logprobs=False) as server:
        oracle = make_oracle(options(server, template, ask="logprobs"))
        with pytest.raises(InputError, match="gives no log-probs; sample answers by oracle.ask"):
            list(oracle.compare(ITEMS))
    assert len(server.asked) <= 4


def test_a_server_that_takes_no_n(template: Path) -> None:
    with serving("422", logprobs=False) as server:
        given = {"ask": "verdicts", "verdicts": 3, "max_concurrency": 1}
        oracle = make_oracle(options(server, template, **given))
        (matrix,) = oracle.compare([Comparison(ITEMS[0].messages, ["aaaaaaaaaaaa"], ["b"])])
    assert matrix[0, 0] == 1.0
    assert [body["n"] for body in server.bodies].count(1) == 6


def test_undecided_is_a_draw(template: Path) -> None:
    with serving(*["neither"] * 2) as server:
        oracle = make_oracle(options(server, template, max_concurrency=1))
        (matrix,) = oracle.compare([Comparison(ITEMS[0].messages, ["a"], ["b"])])
    assert matrix[0, 0] == 0.5
    assert oracle.counts()["oracle/undecided"] == 2 and len(server.asked) == 2


@pytest.mark.parametrize("ask", ["auto", "logprobs"])
@pytest.mark.parametrize("script", [["blank"], ["ok"] * 9 + ["blank", "odd", "blank"]])
def test_an_empty_answer_is_a_draw(ask: str, script: list[str], template: Path) -> None:
    """It shows nothing of the server: the others are log-probs still."""
    with serving(*script) as server:
        oracle = make_oracle(options(server, template, ask=ask))
        list(oracle.compare(ITEMS))
    assert all("logprobs" in body for body in server.bodies)
    assert oracle.counts()["oracle/undecided"] == sum(word != "ok" for word in script)
    assert len(server.asked) == ORDERS


@pytest.mark.parametrize(
    "trouble",
    ["stall", "trickle", "close", "half", "garbage", "shape", "empty", "429", "500", "503"],
)
def test_what_passes(trouble: str, template: Path) -> None:
    """Each of the first five requests meets it; the answers are those of a healthy server."""
    with serving(*[trouble] * 5) as server:
        oracle = make_oracle(options(server, template, timeout=2))
        matrices = list(oracle.compare(ITEMS))
    for item, matrix in zip(ITEMS, matrices, strict=True):
        np.testing.assert_allclose(matrix, averaged(item, lambda a, b: expit(gap(a, b))), atol=1e-9)
    counts = oracle.counts()
    assert counts["oracle/retries"] == 5
    assert counts["oracle/requests"] == len(server.asked) == ORDERS + 5


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("stall", r"given up after 3 attempts.*no answer within 0.2 s; what was answered is kept"),
        ("close", "given up after 3 attempts"),
        ("garbage", "no chat completion: '<html>not what you think</html>'"),
        ("500", "500 'status 500"),
        ("401", r": 401 \('status 401, you sent Bearer …'\)"),
        ("404", ": 404 "),
    ],
)
def test_what_does_not_pass(
    trouble: str, words: str, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, without the key; answers that came before it are kept."""
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    script = ["ok"] * 10 + [trouble] * 99
    given = {"timeout": 0.2, "max_retries": 2, "api_key_env": "JUDGE_KEY"}
    with serving(*script) as server:
        oracle = make_oracle(options(server, template, **given), tmp_path / "cache")
        with pytest.raises(InputError, match=words) as caught:
            list(oracle.compare(ITEMS))
        assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
        assert server.keys == {"Bearer sk-secret"}
        answered = len(server.answered)
        server.script.clear()
        again = make_oracle(options(server, template, **given), tmp_path / "cache")
        list(again.compare(ITEMS))
        assert answered >= 10 and again.counts()["oracle/known"] == answered
        assert Counter(server.answered).most_common(1)[0][1] == 1
    assert b"secret" not in (tmp_path / "cache").read_bytes()


def test_nobody_listens(template: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    given = {"base_url": url, "model": "m", "template": str(template), "max_retries": 1}
    with pytest.raises(InputError, match=f"oracle.base_url {url}: given up after 2 attempts"):
        list(make_oracle(EndpointConfig(**given)).compare(ITEMS))


@pytest.mark.parametrize("limit", ["max_requests", "max_tokens"])
def test_budget(limit: str, template: Path, tmp_path: Path) -> None:
    """It stops cleanly, over all that share the file; raised, the rest is asked."""
    most = 20 if limit == "max_requests" else 200
    cache = tmp_path / "cache"
    with serving(delay=0.005) as server:
        for _ in range(2):
            oracle = make_oracle(options(server, template, **{limit: most}), cache)
            with pytest.raises(InputError, match=f"oracle.{limit}: .* of {most} are spent"):
                list(oracle.compare(ITEMS))
            under_way = 0 if limit == "max_requests" else 3
            assert 20 <= len(server.asked) <= 20 + under_way
        assert len(server.answered) == len(server.asked)
        oracle = make_oracle(options(server, template, **{limit: 10 * most}), cache)
        list(oracle.compare(ITEMS))
    assert len(server.asked) == len(set(server.asked)) == ORDERS


BUDGET = """
import sys
from pathlib import Path
from comal_fast.config.oracle import EndpointConfig
from comal_fast.data.conversation import Message
from comal_fast.errors import InputError
from comal_fast.oracles import make_oracle, self_comparison
from comal_fast.system.signals import listening

url, template, cache, name = sys.argv[1:]
options = EndpointConfig(base_url=url, model="m", template=template, max_requests=40)
items = [self_comparison((Message("user", f"{name} {i}"),), ["a", "bb"]) for i in range(60)]
try:
    list(make_oracle(options, Path(cache)).compare(items))
except InputError as error:
    print(error)
"""


def test_runs_at_the_same_time_keep_one_budget(template: Path, tmp_path: Path) -> None:
    with serving(delay=0.02) as server:
        command = [python(), "-c", BUDGET, server.url, str(template), f"{tmp_path}/cache"]
        runs = [
            subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abc"
        ]
        said = [run.communicate(timeout=60)[0] for run in runs]
    assert all("of 40 are spent" in text for text in said)
    assert len(server.asked) == 40


def test_tokens_that_nobody_counts(template: Path) -> None:
    with serving(*["unused"] * 9) as server:
        oracle = make_oracle(options(server, template, max_tokens=100))
        with pytest.raises(InputError, match="does not say how many tokens it used"):
            list(oracle.compare(ITEMS))


@pytest.mark.parametrize("key", ["sk-abc\nsk-def", "sk abc", "clé"])
def test_what_is_no_key(key: str, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with (
        pytest.raises(InputError, match="what JUDGE_KEY holds is no key") as caught,
        serving() as s,
    ):
        make_oracle(options(s, template, api_key_env="JUDGE_KEY"))
    assert "sk" not in str(caught.value) and "cl" not in str(caught.value).replace("oracle", "")


def test_options(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(text: str) -> str:
        file = tmp_path / "c.yaml"
        oracle = f"oracle: {{name: endpoint, model: m, {text}}}"
        file.write_text(f"model: {{name_or_path: x}}\n{oracle}")
        with pytest.raises(InputError) as caught:
            make_oracle(load_config(file).oracle)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "'localhost:8000' is no address such as" in say("base_url: 'localhost:8000'")
    assert "would be written down" in say("base_url: 'http://me:key@host/v1'")
    assert "would be written down" in say("base_url: 'http://host/v1?key=3'")
    assert "would be written down" in say("base_url: 'http://:secret@host/v1'")
    assert "is no address" in say("base_url: 'http://host:99999/v1'")
    assert "is no address" in say("base_url: 'http://host:port/v1'")
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert "variable NO_SUCH is not set" in say("base_url: 'http://h/v1', api_key_env: NO_SUCH")
    assert "punctuation alone" in say("base_url: 'http://h/v1', labels: ['A', 'A.']")


def test_reading_answers() -> None:
    plain = Template("", ("A", "B"), "")
    assert verdict("A", plain) == 1 and verdict("**B** is better than A", plain) == 0
    assert verdict("Answers vary", plain) is None
    output = Template("", ("a", "b"), "Output (")
    assert verdict("a b Output (b) is better", output) == 0

    def token(text: str, **listed: float) -> dict[str, Any]:
        top = [{"token": t, "logprob": np.log(p)} for t, p in listed.items()]
        return {"token": text, "logprob": -0.1, "top_logprobs": top}

    tokens = [token("Output"), token(" ("), token("b", a=0.2, b=0.6, c=0.1), token(")")]
    assert label_probability(tokens, output) == pytest.approx(0.25)
    assert label_probability([token("a", a=1.0), *tokens], output) == pytest.approx(0.25)
    assert label_probability(tokens[:2], output) is None
    spaced = [{"token": " A", "logprob": 0.0, "top_logprobs": []}]
    assert label_probability(spaced, plain) == 1.0


DRIVER = """
import sys
from pathlib import Path
from comal_fast.config.oracle import EndpointConfig
from comal_fast.data.conversation import Message
from comal_fast.oracles import make_oracle, self_comparison
from comal_fast.system.signals import listening

url, template, cache = sys.argv[1:]
options = EndpointConfig(base_url=url, model="m", template=template, max_concurrency=4)
items = [self_comparison((Message("user", f"Say {i}."),), ["a", "bb", "ccc"]) for i in range(60)]
print("ready", flush=True)
with listening():
    list(make_oracle(options, Path(cache)).compare(items))
print("done", flush=True)
"""


def test_killed_at_random_instants(template: Path, tmp_path: Path) -> None:
    """What the server answered and the judge had time to read is not asked for again."""
    generator, kills, done = random.Random(1), 0, False
    with serving(delay=0.01) as server:
        command = [python(), "-c", DRIVER, server.url, str(template), f"{tmp_path}/cache"]
        while not done:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            if kills < 4:
                time.sleep(generator.uniform(0.1, 0.5))
                process.kill()
                kills += 1
            done = "done" in process.stdout.read()
            process.wait()
        asked = Counter(server.asked)
    assert len(asked) == 360
    assert sum(asked.values()) - 360 <= 4 * kills  # at most what was under way at each kill


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals, template: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves at once, whatever the server does; so does a scheduler's signal."""
    script = ["ok"] * 5 + ["stall"] * 99
    with serving(*script) as server:
        command = [python(), "-c", DRIVER, server.url, str(template), f"{tmp_path}/cache"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while len(server.asked) < 9:
            time.sleep(0.05)
        process.send_signal(number)
        start = time.monotonic()
        said = process.communicate(timeout=10)[1].decode()
        assert time.monotonic() - start < 3
    ended = "KeyboardInterrupt" if number == signal.SIGINT else "Terminated: SIGTERM"
    assert ended in said.strip().splitlines()[-1]


def test_a_run(tiny_run: Path, template: Path) -> None:
    """The whole loop, with what was spent in its metrics."""
    with serving() as server:
        oracle = {
            "name": "endpoint",
            "base_url": server.url,
            "model": "j",
            "template": str(template),
        }
        text = tiny_run.read_text()
        tiny_run.write_text(
            text.replace("oracle: {target_words: 2}", f"oracle: {json.dumps(oracle)}")
        )
        config = load_config(tiny_run, ["algorithm.iterations=1"])
        run_all(config)
        asked = len(server.asked)
        assert asked == len(set(server.asked))
        rows = RunDirectory(config.output_dir).rows()
    spent = [r["oracle/requests"] - r["oracle/retries"] for r in rows if "oracle/requests" in r]
    assert sum(spent) == asked and all("oracle/tokens" in r for r in rows if r["phase"] == "judge")


def _vllm() -> str | None:
    """A Python that has vLLM, where one is named or in the PATH."""
    named = os.environ.get("COMAL_FAST_VLLM")
    found = shutil.which("vllm")
    return named or (str(Path(found).parent / "python") if found else None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_vllm_serves_smollm2(smollm2: Any, tmp_path: Path) -> None:
    """A real server: its log-probs are those that `pairwise_lm` computes here."""
    python = _vllm()
    if python is None:
        pytest.skip("no vLLM; name a Python that has it in COMAL_FAST_VLLM")
    from comal_fast.config.oracle import PairwiseLmConfig
    from comal_fast.model.load import load_model, load_tokenizer

    folder = tmp_path / "model"
    load_model(smollm2).float().save_pretrained(folder)
    load_tokenizer(smollm2).save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += [
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "1024",
    ]
    command += ["--served-model-name", "smollm2", "--max-num-seqs", "8"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        while not _healthy(url):
            assert server.poll() is None, (tmp_path / "log").read_text()[-2000:]
            time.sleep(2)
        asked = EndpointConfig(base_url=f"{url}/v1", model="smollm2", max_answer_tokens=4)
        items = [
            self_comparison(
                (Message("user", "What is the capital of France?"),), ["Paris.", "A pear."]
            ),
            Comparison((Message("user", "Name a colour."),), ["Blue."], ["No.", "Seven."]),
        ]
        theirs = make_oracle(asked)
        answers = list(theirs.compare(items))
        assert theirs.counts()["oracle/requests"] == 6
        here = {"model": str(folder), "dtype": "float32", "device": "cpu"}
        ours = list(make_oracle(PairwiseLmConfig(**here)).compare(items))
        assert theirs.counts()["oracle/undecided"] == 0
        np.testing.assert_allclose(answers[0], ours[0], atol=1e-5)
        np.testing.assert_allclose(answers[1], ours[1], atol=0.05)  # " A" counts as A there
        sampled = make_oracle(asked.model_copy(update={"ask": "verdicts", "verdicts": 4}))
        assert all(((m >= 0) & (m <= 1)).all() for m in sampled.compare(items))
    finally:
        server.terminate()
        server.wait(60)


def _healthy(url: str) -> bool:
    from urllib.request import urlopen

    try:
        with urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
