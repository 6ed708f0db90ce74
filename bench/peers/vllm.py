"""vLLM as a contender of `bench generate`, in the environment of another Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from comal_fast.errors import InputError

PROCESS = Path(__file__).with_name("vllm_process.py")


class Vllm:
    """An engine that is loaded and warm; a context manager, which ends it."""

    def __init__(
        self, python: str, model: Any, longest: int, rows: int, sampling: dict[str, Any]
    ) -> None:
        self.folder = tempfile.TemporaryDirectory()
        model.save_pretrained(self.folder.name)
        self.log = Path(self.folder.name) / "log"
        cuda = model.device.type == "cuda"
        engine = {
            "model": self.folder.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_model_len": longest,
            "max_num_seqs": rows,
            "enforce_eager": not cuda,
            # the model of the other contenders is on the device too
            "gpu_memory_utilization": 0.4 if cuda else 0.25,
            "enable_prefix_caching": True,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, str(PROCESS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.version = self._ask({"engine": engine, "sampling": sampling})["version"]

    def __call__(self, prompts: list[list[int]]) -> list[list[list[int]]]:
        """The responses of every prompt."""
        found: list[list[list[int]]] = self._ask(prompts)
        return found

    def _ask(self, message: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended; what follows says so
        line = self.process.stdout.readline()
        if not line:
            said = [x for x in self.log.read_text().splitlines() if "Error" in x]
            raise InputError(f"vLLM ended: {said[-1] if said else 'it said nothing'}")
        return json.loads(line)

    def __enter__(self) -> Vllm:
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()
