"""A real HTTP server that speaks the OpenAI protocol, judges by length, and fails when told to."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATE = "{prompt}\nA<{response_a}>\nB<{response_b}>\nWhich?"
_PAIR = re.compile(r"(.*)\nA<(.*)>\nB<(.*)>\nWhich\?", re.DOTALL)
STALL = 30.0  # seconds; the server's thread lets go earlier when it is stopped
BIAS = 0.5  # nats towards A, whatever it says


class Server(ThreadingHTTPServer):
    """`script`: what happens to the first requests, one word each; then all are answered.

    `asked`: what each request was about; `answered`: what was answered whole, in order.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: list[str], logprobs: bool, delay: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.logprobs, self.delay = list(script), logprobs, delay
        self.asked: list[tuple[str, str, str]] = []
        self.answered: list[tuple[str, str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.now = self.most = 0
        self.lock, self.stopped = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no news."""


def gap(first: str, second: str) -> float:
    """What it thinks: the logit of the first one's label."""
    return (len(first) - len(second)) / 4 + BIAS


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match = _PAIR.fullmatch(body["messages"][0]["content"])
        assert match is not None and self.path == "/v1/chat/completions"
        about = (match[1], match[2], match[3])
        with server.lock:
            server.asked.append(about)
            server.bodies.append(body)
            server.keys.add(self.headers.get("Authorization"))
            happening = server.script.pop(0) if server.script else "ok"
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self.happen(happening, body, about)
        finally:
            with server.lock:
                server.now -= 1

    def happen(self, what: str, body: dict[str, Any], about: tuple[str, str, str]) -> None:
        server = self.server
        if what == "stall":
            server.stopped.wait(STALL)
            self.close_connection = True
        elif what == "trickle":  # alive, and never done
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while not server.stopped.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()
        elif what == "close":
            self.close_connection = True
        elif what == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif what == "garbage":
            self.say(200, b"<html>not what you think</html>")
        elif what == "shape":
            self.say(200, b'{"choices": [{"text": "A"}]}')
        elif what == "empty":
            self.say(200, b'{"choices": []}')
        elif what.isdigit():
            key = self.headers.get("Authorization", "")
            text = f"status {what}, you sent {key}"
            if what == "400" and "logprobs" in body:
                text = f"{'no ' * 50} does not support parameters: ['LogProbs']"
            content = json.dumps({"error": {"message": text}}).encode()
            self.say(int(what), content, {"Retry-After": "0.05"} if what == "429" else {})
        else:
            time.sleep(server.delay)
            self.say(200, json.dumps(self.complete(body, about, what)).encode())
            with server.lock:
                server.answered.append(about)

    def complete(
        self, body: dict[str, Any], about: tuple[str, str, str], what: str
    ) -> dict[str, Any]:
        logit = gap(about[1], about[2])
        choices = []
        for number in range(body.get("n", 1)):
            label = "A" if logit > 0 else "B"
            if body.get("n", 1) > 1:  # three of four as it thinks
                label = label if number % 4 else "AB"[label == "A"]
            text = "Both are fine." if what == "neither" else f" {label}"
            if what == "blank":
                choices.append({"message": {"content": None}, "logprobs": {"content": []}})
                continue
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
            if body.get("logprobs") and self.server.logprobs:
                first = -math.log1p(math.exp(-logit))
                listed = {"A": first - 0.1, "B": first - logit - 0.1, "C": -3.0}
                if what == "neither":
                    entries = [{"token": "Both", "logprob": -0.1, "top_logprobs": []}]
                else:
                    top = [{"token": t, "logprob": p} for t, p in listed.items()]
                    entries = [{"token": f" {label}", "logprob": -0.1, "top_logprobs": top}]
                if what == "odd":
                    entries[0]["top_logprobs"] = [{"token": "A", "logprob": None}]
                choice["logprobs"] = {"content": entries}
            choices.append(choice)
        usage = {} if what == "unused" else {"usage": {"total_tokens": 10}}
        return {"choices": choices, **usage}

    def say(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(*script: str, logprobs: bool = True, delay: float = 0.0) -> Iterator[Server]:
    server = Server(list(script), logprobs, delay)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
