"""Requests to an OpenAI-compatible server: retried, counted, within a budget, many at once."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import random
import re
from typing import Any

from comal_fast.config.oracle import EndpointConfig
from comal_fast.errors import InputError
from comal_fast.oracles.checked import short
from comal_fast.store.answers import Answers

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds before the first retry, and at most
_READ = 2000  # characters of what a server says
_AGAIN = {408, 409, 425, 429}  # statuses that may be another's next time; and all from 500 on


class Spent(InputError):
    """The budget is spent: nothing more is sent."""


class Refused(InputError):
    """The server will not have this request, however often it is sent."""

    def __init__(self, status: int, said: str, place: str) -> None:
        super().__init__(f"{place}: {status} ({short(said)})")
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
        self._client = None
        limit = self.options.max_concurrency
        limits = self._http.Limits(max_connections=limit, max_keepalive_connections=limit)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = self._http.AsyncClient(
            base_url=self.options.base_url, headers=headers, timeout=None, limits=limits
        )
        self.note()

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.aclose()

    def note(self) -> None:
        """Write down what was spent since the last time, and read what others have."""
        now = self._spent_here()
        limited = self.options.max_requests is not None or self.options.max_tokens is not None
        if self.answers and (now != self._noted or limited):
            more = now[0] - self._noted[0], now[1] - self._noted[1]
            spent = self.answers.spend(self._name, *more)
            self._noted = now
            self._before = spent[0] - now[0], spent[1] - now[1]

    def _spent_here(self) -> tuple[int, int]:
        return int(self.counts["oracle/requests"]), int(self.counts["oracle/tokens"])

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
            self._take_request()
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
                problem = f"{response.status_code} {short(self._said(response))}"
                wait = _retry_after(response.headers.get("retry-after"))
                continue
            if response.status_code != 200:
                raise Refused(response.status_code, self._said(response), self._place)
            answer = _answer(response)
            if answer is None:
                said = short(self._said(response))
                problem = f"an answer that is no chat completion: {said}"
                continue
            self.counts["oracle/tokens"] += self._tokens(answer)
            return answer
        raise InputError(
            f"{self._place}: given up after {self.options.max_retries + 1} attempts, the last one "
            f"because of {problem}; what was answered is kept, the same command goes on from there"
        )

    @property
    def _place(self) -> str:
        return f"oracle.base_url {self.options.base_url}"

    def _take_request(self) -> None:
        """Count one request, in the file too where there is a budget; Spent where it is spent.

        Counted before it is sent, so that runs at the same time keep one budget together.
        """
        self._check_budget()
        most = self.options.max_requests
        if self.answers and most is not None:
            self.note()
            if not self.answers.take(self._name, most):  # another run was faster
                self.note()
                self._check_budget()
            self._noted = self._noted[0] + 1, self._noted[1]
        self.counts["oracle/requests"] += 1

    def _check_budget(self) -> None:
        o, here = self.options, self._spent_here()
        for name, limit, spent in (
            ("max_requests", o.max_requests, self._before[0] + here[0]),
            ("max_tokens", o.max_tokens, self._before[1] + here[1]),
        ):
            if limit is not None and spent >= limit:
                raise Spent(
                    f"oracle.{name}: {spent} of {limit} are spent; what was answered is kept, "
                    "and the same command goes on from there once it is raised"
                )

    def _tokens(self, answer: dict[str, Any]) -> float:
        usage = answer.get("usage")
        total = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(total, int | float):
            return float(total)
        if self.options.max_tokens is not None:
            raise InputError(
                f"{self._place}: it does not say how many tokens it used, so oracle.max_tokens "
                "can't be kept; use max_requests"
            )
        return 0.0

    def _said(self, response: Any) -> str:
        """What the server said, on one line and without the key."""
        try:
            content = response.json()
            error = content.get("error", content)
            text = error.get("message", str(error)) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError):
            text = response.text
        return self._safe(" ".join(str(text)[:_READ].split()))

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
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(
            f"oracle.api_key_env: what {options.api_key_env} holds is no key: it has blanks, line "
            "ends or letters beyond ASCII"
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
