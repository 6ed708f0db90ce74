"""Stands where vLLM is not installed: its calls and failures, no model. A response counts upwards.

STANDIN_VLLM: how it fails, `WHAT[:PROMPTS]`, after the responses to so many prompts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import Any

__version__, __version_tuple__ = "0.32.0", (0, 32, 0)
_FAILS, _, _AFTER = os.environ.get("STANDIN_VLLM", "").partition(":")

if _FAILS == "old":
    __version__, __version_tuple__ = "0.9.1", (0, 9, 1)


class SamplingParams:
    def __init__(self, **options: Any) -> None:
        self.__dict__ |= options


class LLM:
    def __init__(self, **options: Any) -> None:
        print("INFO it prints to standard output")
        print(json.dumps({**options, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}))
        if _FAILS == "files":
            print("(Worker pid=1) ERROR RuntimeError: Cannot find any model weights", flush=True)
            raise RuntimeError("Engine core initialization failed. See root cause above.")
        if _FAILS == "memory":
            raise ValueError("No available memory for\nthe cache blocks.")
        if _FAILS == "start":
            time.sleep(600)
        self.llm_engine = Engine()


class Engine:
    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.ended = 0

    def add_request(self, name: str, prompt: Any, params: Any, lora_request: Any = None) -> str:
        self.waiting.append((name, prompt["prompt_token_ids"], params, lora_request))
        return name

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        if _AFTER and self.ended == int(_AFTER):
            if _FAILS == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if _FAILS == "dead":
                raise SystemError("EngineCore encountered an issue. See stack trace (above)")
            if _FAILS == "hangs":
                time.sleep(600)
        name, prompt, params, lora = self.waiting.pop()  # another order than they came in
        self.ended += 1
        print(f"step {name}", file=sys.stderr)
        stop = params.stop_token_ids[0]
        rows = []
        for index in range(params.n):
            short = (prompt[0] + index) % 2 == 0
            ids = [prompt[-1] + index] * (1 if short else params.max_tokens)
            ids += [stop] * short
            reason = "stop" if short else "length"
            rows.append(SimpleNamespace(index=index, token_ids=tuple(ids), finish_reason=reason))
        return [SimpleNamespace(request_id=name, outputs=rows[::-1], finished=True)]
