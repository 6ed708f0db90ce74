"""`generation.engine: vllm`: vLLM in processes of its own, which end with the sampling.

An engine is one run of `vllm_worker.py`, in whatever environment has vLLM. Prompts go over as token
ids, the policy as its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from comal_fast.config.generation import VllmConfig
from comal_fast.errors import InputError
from comal_fast.generation.engine import Engine, Response, Sampled
from comal_fast.model.stored import generation_config, stop_token_ids
from comal_fast.system.processes import cause
from comal_fast.system.ranks import local_world

WORKER = Path(__file__).with_name("vllm_worker.py")
_ERROR = re.compile(r"(?:^|\W)(\w*(?:Error|Exception|Interrupt)): *(\S.*)")
_CONSEQUENCES = ("core initialization failed", "encountered an issue", "WorkerProc init")
_LONGEST = 300  # characters of an error that one line repeats
_TICK = 1.0  # seconds between two looks at engines that say nothing


class VllmEngine:
    """As many engines as the configuration asks for on this machine."""

    apart = True

    def __init__(self, options: VllmConfig, policy: Sampled) -> None:
        self.options, self.policy = options, policy

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        seed: str,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[int, list[Response]]]:
        """Yield {prompt index: its `count` responses}, a prompt as its last response ends.

        Samples differ from one call to the next by what is computed together. A part is every n-th
        prompt by length. Raises InputError, after what has been sampled is yielded, where an engine
        doesn't start, runs out of memory, dies, or says nothing for `stall_minutes`.
        """
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        mine = order[part[0] :: part[1]]
        if not mine:
            return
        work, engines = self._work(prompts, mine, count), _engines(self.options)
        gpus = _gpus(self.policy.device, engines, self.options.vllm.tensor_parallel_size)
        messages: queue.Queue[tuple[_Process, dict[str, Any] | None]] = queue.Queue()
        started: list[_Process] = []
        try:
            for engine, devices in zip(range(min(engines, len(mine))), gpus, strict=False):
                numbers = mine[engine::engines]
                own = {"prompts": [list(prompts[i]) for i in numbers]}
                number = part[0] * engines + engine
                work["engine"]["seed"] = _seed(seed, number, own["prompts"])
                log = self.policy.log.with_name(f"{self.policy.log.name}.vllm-{number}.log")
                process = _Process(self.options, work | own, numbers, devices, log)
                started.append(process)
                process.listen(messages)
            yield from self._responses(started, messages)
        finally:
            for process in started:
                process.end()

    def _responses(
        self, started: list[_Process], messages: queue.Queue[tuple[_Process, dict[str, Any] | None]]
    ) -> Iterator[dict[int, list[Response]]]:
        failed: _Process | None = None
        while any(process.left for process in started):
            try:
                process, message = messages.get(timeout=0 if failed else _TICK)
            except queue.Empty:
                for process in started:
                    if process.ended():
                        process.end()  # what it started may hold its pipe open; then that ends too
                failed = failed or next((p for p in started if p.stalled()), None)
                if failed:
                    raise InputError(failed.why()) from None
                continue
            if message is None or "error" in message:
                process.error = process.error or (message or {}).get("error")
                failed = failed or (process if process.left else None)
            elif "responses" in message:
                index = process.left.pop(message["prompt"])
                yield {index: [Response(ids, finished) for ids, finished in message["responses"]]}

    def _work(
        self, prompts: Sequence[Sequence[int]], mine: list[int], count: int
    ) -> dict[str, Any]:
        """What is the same for all engines, as the worker reads it."""
        options, own, config = self.options, self.options.vllm, self.policy.config
        longest = max(len(prompts[i]) for i in mine) + options.max_new_tokens
        if own.max_model_len is not None and own.max_model_len < longest:
            raise InputError(
                f"generation.vllm.max_model_len: {own.max_model_len}, and the longest prompt with "
                f"generation.max_new_tokens={options.max_new_tokens} needs {longest}"
            )
        stored = self.policy.stored()
        engine = {
            "model": stored.source,
            "revision": stored.revision,
            "trust_remote_code": stored.trust_remote_code,
            "dtype": config.dtype,
            "max_model_len": own.max_model_len or longest,
            "tensor_parallel_size": own.tensor_parallel_size,
            "gpu_memory_utilization": own.gpu_memory_utilization,
            "quantization": own.quantization,
            "enforce_eager": own.enforce_eager,
            "max_num_seqs": own.max_num_seqs,
        }
        return {
            "engine": {name: value for name, value in engine.items() if value is not None},
            "adapter": stored.adapter and str(stored.adapter.resolve()),
            "rank": config.lora and config.lora.r,
            "sampling": {
                "n": count,
                "max_tokens": options.max_new_tokens,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "stop_token_ids": stop_token_ids(generation_config(stored), self.policy.tokenizer),
            },
        }


class _Process:
    """An engine at work."""

    def __init__(
        self,
        options: VllmConfig,
        work: dict[str, Any],
        numbers: list[int],
        gpus: str | None,
        log: Path,
    ) -> None:
        self.left = dict(enumerate(numbers))  # of its prompts, what each is to the caller
        self.total = len(numbers)
        self.options, self.log = options.vllm, log
        self.error: str | None = None
        self.ready = False
        self.heard, self.logged = time.monotonic(), 0
        log.parent.mkdir(parents=True, exist_ok=True)
        alone = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
        environment = {n: v for n, v in os.environ.items() if not n.startswith(alone)}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        python = self.options.python or sys.executable
        try:
            with log.open("wb") as errors:
                self.process = subprocess.Popen(
                    [str(Path(python).expanduser()), str(WORKER)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                    start_new_session=True,  # so that all it starts ends with it
                )
        except OSError as error:
            raise InputError(
                f"generation.vllm.python: {python} can't be run ({error.strerror}); "
                "name the Python of an environment that has vllm"
            ) from None
        self.work = json.dumps(work).encode() + b"\n"

    def listen(self, messages: queue.Queue[tuple[_Process, dict[str, Any] | None]]) -> None:
        """Put (this, what it says) into `messages` as it comes, and None at its end."""

        def write() -> None:
            assert self.process.stdin is not None
            with suppress(OSError):  # it ended before
                self.process.stdin.write(self.work)
                self.process.stdin.flush()  # and stays open: the engine ends when it is closed

        def read() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if not line.endswith(b"\n"):  # it died in the middle
                    break
                self.heard, message = time.monotonic(), json.loads(line)
                self.ready = self.ready or "error" not in message
                messages.put((self, message))
            messages.put((self, None))

        for work in (write, read):
            Thread(target=work, daemon=True).start()

    def ended(self) -> bool:
        """Whether the process is gone and its work is not done, as far as has been heard."""
        return bool(self.left) and self.process.poll() is not None

    def stalled(self) -> bool:
        """Whether there has been no sign of life for too long; while it loads, its log is one."""
        if not self.ready and (size := self.log.stat().st_size) != self.logged:
            self.logged, self.heard = size, time.monotonic()
        return bool(self.left) and time.monotonic() - self.heard > 60 * self.options.stall_minutes

    def why(self) -> str:
        """What went wrong and what to change, in one line."""
        done = f"the responses to {self.total - len(self.left)} of {self.total} prompts are kept"
        end = f"{done}, and the same command goes on; its log: {self.log}"
        if self.process.poll() is None and self.stalled():
            when = "" if self.ready else " while it started"
            return (
                f"vLLM hangs: no sign of life{when} for generation.vllm.stall_minutes="
                f"{self.options.stall_minutes:g}; raise that if it is only slow; {end}"
            )
        self._settle()
        text = self._root()
        if text is None and self.error is None:
            ended = cause(self.process.returncode)
            return f"vLLM ended by {ended}; out of memory? {self._less()}; {end}"
        if text is None:
            return f"a process of vLLM's ended without a word; out of memory? {self._less()}; {end}"
        if "No module named 'vllm'" in text:
            python = self.options.python or sys.executable
            return (
                f"generation.vllm.python: {python} has no vllm; install it there "
                "(pip install 'comal-fast[vllm]'), or name the Python of an environment that has it"
            )
        if re.search("memory", text, re.IGNORECASE):
            text += f"; {self._less()}"
        return f"vLLM failed: {text}; {end}"

    def _settle(self) -> None:
        """Wait for a process that is about to end."""
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.end()

    def _root(self) -> str | None:
        """The error behind the others: the worker's own, or what its processes wrote to the log."""
        logged = self.log.read_text(errors="replace").splitlines()
        found = [self.error] if self.error else []
        for line in reversed(logged):
            if (match := _ERROR.search(line)) and "WARNING" not in line:
                found.append(f"{match[1]}: {match[2]}")
        for text in found:
            if not any(consequence in text for consequence in _CONSEQUENCES):
                line = " ".join(text.split())
                return line if len(line) <= _LONGEST else line[: _LONGEST - 2] + " …"
        return None

    def _less(self) -> str:
        if self.ready:
            return "lower generation.vllm.max_num_seqs or generation.vllm.gpu_memory_utilization"
        return (
            "change generation.vllm.gpu_memory_utilization "
            f"({self.options.gpu_memory_utilization:g}), lower max_num_seqs, set enforce_eager, "
            "or split the model (tensor_parallel_size)"
        )

    def end(self) -> None:
        """End it, and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        with suppress(OSError):  # of work that it had not read
            self.process.stdin.close()


def _engines(options: VllmConfig) -> int:
    """Engines on this machine."""
    own = options.vllm
    return own.data_parallel_size or max(1, local_world() // own.tensor_parallel_size)


def _gpus(device: torch.device, engines: int, each: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of every engine; None on a CPU. InputError where there are too few."""
    if device.type != "cuda":
        return [None] * engines
    first = 0 if device.index is None or local_world() > 1 else device.index
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    visible = [x.strip() for x in named.split(",")] if named else [str(i) for i in range(count)]
    mine = visible[first : first + engines * each]
    if len(mine) < engines * each:
        raise InputError(
            f"generation.vllm: {engines} engines of tensor_parallel_size={each} need "
            f"{engines * each} GPUs, and there are {len(visible) - first}; lower "
            "data_parallel_size or tensor_parallel_size"
        )
    return [",".join(mine[i * each : (i + 1) * each]) for i in range(engines)]


def _seed(seed: str, engine: int, prompts: list[list[int]]) -> int:
    text = json.dumps([seed, engine, prompts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def make(options: VllmConfig, policy: Sampled) -> Engine:
    """The engine, which starts when it samples."""
    return VllmEngine(options, policy)
