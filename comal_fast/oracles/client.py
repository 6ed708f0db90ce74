"""Requests to an OpenAI-compatible server: retried, counted, within a budget, many at once."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import random
from typing import Any

from comal_fast.config.oracle import EndpointConfig
from comal_fast.errors import InputError
from comal_fast.oracles.checked import short
from comal_fast.store.answers import Answers

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds before the first retry, and at most
_AGAIN = {408, 409, 425, 429}  # statuses that may be another's next time; and all from 500 on


class Spent(InputError):
    """The budget is spent: nothing more is sent."""


class Refused(InputError):
    """The server will not have this request, however often it is sent."""

    def __init__(self, status: int, said: str, place: str) -> None:
        super().__init__(f"{place}: {status} ({said})")
        self.status, self.said = status, said


class Client:
    """Sends chat completions; used within one event loop at a time."""

    def __init__(self, options: EndpointConfig) -> None:
        self.options = options
        self.answers: Answers | None = None
        self.counts = {"oracle/requests": 0.0, "oracle/retries": 0.0, "oracle/tokens": 0.0}
        self._name = f"{options.base_url} {options.model}"
        self._http = _http()
        self._client: Any = None
        self._key = api_key(options)
        self._before = (0, 0)  # spent by others, and earlier
        self._noted = (0, 0)  # of this one's, what the file knows

    def open(self) -> None:
        """Get ready within a new event loop."""
        limit = self.options.max_concurrency
        limits = self._http.Limits(max_connections=limit, max_keepalive_connections=limit)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = self._http.AsyncClient(
            base_url=self.options.base_url, headers=headers, timeout=None, limits=limits
        )
        if self.answers:
            self.note()
            requests, tokens = self.answers.spent(self._name)
            self._before = requests - self._noted[0], tokens - self._noted[1]

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()

    def note(self) -> None:
        """Write down what was spent since the last time."""
        now = int(self.counts["oracle/requests"]), int(self.counts["oracle/tokens"])
        if self.answers and now != self._noted:
            self.answers.spend(self._name, now[0] - self._noted[0], now[1] - self._noted[1])
            self._noted = now

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to a chat completion of this body, with at least one choice.

        Raises Spent before it would be sent over the budget, Refused where the server will not have
        it, and InputError when the last retry failed too.
        """
        problem, wait = "", 0.0
        for attempt in range(self.options.max_retries + 1):
            if attempt:
                self.counts["oracle/retries"] += 1
                await asyncio.sleep(max(wait, _backoff(attempt)))
            self._check_budget()
            self.counts["oracle/requests"] += 1
            wait = 0.0
            try:
                send = self._client.post("/chat/completions", json=body)
                response = await asyncio.wait_for(send, self.options.timeout)
            except TimeoutError:
                problem = f"no answer within {self.options.timeout:g} s"
                continue
            except self._http.HTTPError as error:
                problem = f"{type(error).__name__} {self._safe(str(error))}".strip()
                continue
            if response.status_code in _AGAIN or response.status_code >= 500:
                problem = f"{response.status_code} {self._said(response)}"
                wait = _retry_after(response.headers.get("retry-after"))
                continue
            if response.status_code != 200:
                raise Refused(response.status_code, self._said(response), self._place)
            answer = _answer(response)
            if answer is None:
                problem = f"an answer that is no chat completion: {self._said(response)}"
                continue
            usage = answer.get("usage") or {}
            self.counts["oracle/tokens"] += float(usage.get("total_tokens") or 0)
            return answer
        raise InputError(
            f"{self._place}: given up after {self.options.max_retries + 1} attempts, the last one "
            f"because of {problem}; what was answered is kept, the same command goes on from there"
        )

    @property
    def _place(self) -> str:
        return f"oracle.base_url {self.options.base_url}"

    def _check_budget(self) -> None:
        o = self.options
        requests = self._before[0] + self.counts["oracle/requests"]
        tokens = self._before[1] + self.counts["oracle/tokens"]
        for name, limit, spent in (
            ("max_requests", o.max_requests, requests),
            ("max_tokens", o.max_tokens, tokens),
        ):
            if limit is not None and spent >= limit:
                raise Spent(
                    f"oracle.{name}: {spent:.0f} of {limit} are spent; what was answered is kept, "
                    "and the same command goes on from there once it is raised"
                )

    def _said(self, response: Any) -> str:
        """What the server said, in few words and without the key."""
        try:
            content = response.json()
            error = content.get("error", content)
            text = error.get("message", str(error)) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError):
            text = response.text
        return short(self._safe(" ".join(str(text).split())))

    def _safe(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def api_key(options: EndpointConfig) -> str | None:
    """The key. Raises InputError where the variable that should hold it is not set."""
    if options.api_key_env is None:
        return None
    key = os.environ.get(options.api_key_env, "").strip()
    if not key:
        raise InputError(
            f"oracle.api_key_env: the environment variable {options.api_key_env} is not set"
        )
    return key


def _http() -> Any:
    """httpx, which comes with transformers' hub client under one of two names."""
    for name in ("httpx2", "httpx"):
        if importlib.util.find_spec(name):
            return importlib.import_module(name)
    raise InputError("oracle endpoint: it needs the package httpx; pip install httpx")


def _backoff(attempt: int) -> float:
    """Seconds before a retry: twice as long each time, spread so that not all come at once."""
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


def _retry_after(value: str | None) -> float:
    try:
        return min(_LONGEST_WAIT, max(0.0, float(value or 0)))
    except ValueError:  # a date
        return 0.0


def _answer(response: Any) -> dict[str, Any] | None:
    """The completion, if it is one: a choice at least, each with a message."""
    try:
        content = response.json()
    except ValueError:
        return None
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, list) or not choices:
        return None
    if not all(isinstance(c, dict) and isinstance(c.get("message"), dict) for c in choices):
        return None
    return dict(content)
