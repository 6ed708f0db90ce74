"""The `endpoint` oracle: a language model behind an OpenAI-compatible server judges pairs.

P(first ≻ second) is the first label's share of both labels' probability, at the token of the answer
that names one; where the server gives no log-probs, the share of sampled answers that name it. An
answer that names neither counts as a draw. Both orders are asked and averaged.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from comal_fast.config.oracle import EndpointConfig
from comal_fast.errors import InputError
from comal_fast.oracles.asking import Known, Orders, Question
from comal_fast.oracles.base import Oracle
from comal_fast.oracles.client import Client, Refused
from comal_fast.oracles.template import Template, load_template
from comal_fast.system.signals import interruptible

_LISTED = 20  # log-probs of a token that are asked for: the most that servers give
_AROUND = " \t\n()[]{}<>*_`\"'.,:;!"  # what may stand around a label in its token
_WINDOW = 8  # windows hold this many questions for each request under way


class EndpointOracle(Orders):
    """A server of these options."""

    def __init__(self, options: EndpointConfig) -> None:
        super().__init__()
        o = self.options = options
        self.window = _WINDOW * o.max_concurrency
        self.template = load_template(o.template, o.labels, o.answer, o.criteria)
        self.client = Client(options)
        first, second = map(_label, self.template.labels)
        if first == second or not (first and second):
            raise InputError(
                f"oracle.labels: {self.template.labels} are told apart by punctuation alone, which "
                "is not read in an answer; give words or letters"
            )
        self._seen = False  # log-probs, so that the server has them
        self._singly = False  # a server that takes no `n`
        self._logprobs: bool | None = {"logprobs": True, "verdicts": False}.get(o.ask)
        self._undecided = 0

    def ask(self, questions: Sequence[Question]) -> Iterator[Known]:
        """Yield the (1,) P(first ≻ second) of each question as its answer comes.

        Raises InputError where the budget is spent or the server fails, after what was under way.
        """
        self.client.answers = self.answers
        loop = asyncio.new_event_loop()
        waiting = iter(questions)
        under_way: dict[asyncio.Task[float], Question] = {}
        failure: InputError | None = None
        try:
            self.client.open()
            while True:
                # until it is known whether there are log-probs, one question alone
                most = 1 if self._logprobs is None else self.options.max_concurrency
                while failure is None and len(under_way) < most:
                    if (question := next(waiting, None)) is None:
                        break
                    under_way[loop.create_task(self._first_wins(question))] = question
                if not under_way:
                    break
                finished = asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                done, _ = interruptible(loop, finished)
                found: Known = {}
                for task in done:
                    question = under_way.pop(task)
                    error = task.exception()
                    if error is None:
                        found[question] = np.array([task.result()])
                    elif isinstance(error, InputError):
                        failure = failure or error
                    else:
                        raise error
                self.client.note()
                if found:
                    yield found
            if failure is not None:
                raise failure
        finally:
            loop.run_until_complete(self._leave(list(under_way)))
            self.client.note()
            loop.close()

    def asked(self) -> str:
        """A text of the server, the model and what it is asked."""
        o, said = self.options, self.template.key
        how = [o.ask, o.verdicts, o.temperature, o.max_answer_tokens, o.extra]
        return "endpoint/1 " + json.dumps([o.base_url, o.model, *said, *how], sort_keys=True)

    def counts(self) -> dict[str, float]:
        """Also requests, retries, tokens, and answers that name neither."""
        return super().counts() | self.client.counts | {"oracle/undecided": float(self._undecided)}

    async def _leave(self, under_way: Sequence[asyncio.Task[float]]) -> None:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self.client.close()

    async def _first_wins(self, question: Question) -> float:
        if self._logprobs is not False:
            try:
                answer = await self.client.complete(self._body(question, 1, logprobs=True))
            except Refused as error:
                known = self._seen or self.options.ask == "logprobs"
                if known or "logprob" not in error.said.lower():
                    raise
                answer = None  # the server says that it has none
            choice = answer["choices"][0] if answer else {}
            given = _tokens(choice)
            if given:
                self._logprobs = self._seen = True
            if given or self._seen:  # an empty answer later names no label, and shows nothing
                return self._counted(label_probability(given, self.template, self._sharpness))
            if answer and not str(choice["message"].get("content") or "").strip():
                return self._counted(None)
            if self.options.ask == "logprobs":
                raise InputError(
                    f"oracle.base_url {self.options.base_url}: it gives no log-probs; sample "
                    "answers by oracle.ask: verdicts"
                )
            self._logprobs = False
        return await self._share(question)

    async def _share(self, question: Question) -> float:
        """Of sampled answers; a server may give fewer at once than it was asked for."""
        votes: list[float] = []
        wanted = self.options.verdicts
        while len(votes) < wanted:
            n = 1 if self._singly else wanted - len(votes)
            try:
                answer = await self.client.complete(self._body(question, n, logprobs=False))
            except Refused:
                if n == 1:
                    raise
                self._singly = True
                continue
            for choice in answer["choices"][: wanted - len(votes)]:
                text = choice["message"].get("content")
                votes.append(self._counted(verdict(str(text or ""), self.template)))
        return sum(votes) / len(votes)

    def _counted(self, first: float | None) -> float:
        if first is None:
            self._undecided += 1
            return 0.5
        return first

    @property
    def _sharpness(self) -> float:
        return 1 / self.options.temperature

    def _body(self, question: Question, n: int, *, logprobs: bool) -> dict[str, Any]:
        o = self.options
        said = self.template.fill(question.messages, question.left[0], question.right[0])
        body: dict[str, Any] = {
            "model": o.model,
            "messages": [{"role": "user", "content": said}],
            "max_tokens": o.max_answer_tokens,
        }
        if logprobs:
            body |= {"temperature": 0.0, "logprobs": True, "top_logprobs": _LISTED}
        else:
            body |= {"temperature": o.temperature, "n": n}
        return body | o.extra


def label_probability(
    tokens: Sequence[dict[str, Any]], template: Template, sharpness: float = 1.0
) -> float | None:
    """P of the first label among the two, at the first token that is one of them; None: nowhere.

    `tokens`: `logprobs.content` of a chat completion. A label that is not among the listed tokens
    has probability 0.
    """
    said, labels = "", [_label(label) for label in template.labels]
    for token in tokens:
        if template.answer.strip() in said and _label(token["token"]) in labels:
            mass = dict.fromkeys(labels, 0.0)
            for entry in token.get("top_logprobs") or [token]:
                if (label := _label(entry["token"])) in mass:
                    mass[label] += math.exp(entry["logprob"])
            first, second = (mass[label] ** sharpness for label in labels)
            return first / (first + second) if first + second > 0 else None
        said += token["token"]
    return None


def _tokens(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """`logprobs.content` of a choice; none where it is not of that shape."""
    listed = choice.get("logprobs")
    content = listed.get("content") if isinstance(listed, dict) else None
    tokens = content if isinstance(content, list) else []
    return tokens if all(_is_token(token) for token in tokens) else []


def _is_token(token: Any) -> bool:
    if not isinstance(token, dict):
        return False
    entries = [token, *(token.get("top_logprobs") or [])]
    return all(
        isinstance(e, dict)
        and isinstance(e.get("token"), str)
        and isinstance(e.get("logprob"), int | float)
        for e in entries
    )


def verdict(text: str, template: Template) -> float | None:
    """1 where the answer names the first label, 0 for the second, None for neither."""
    start = template.answer.strip()
    rest = text[text.find(start) + len(start) :] if start in text else text
    first, second = (re.escape(_label(label)) for label in template.labels)
    found = re.search(rf"(?<!\w)(?:({first})|({second}))(?!\w)", rest)
    if found is None:
        return None
    return 1.0 if found.group(1) else 0.0


def _label(token: str) -> str:
    return token.strip(_AROUND)


def make(options: EndpointConfig) -> Oracle:
    """The oracle of these options. Raises InputError for a key or template that is not there.

    The server is first spoken to when it is first asked.
    """
    return EndpointOracle(options)
