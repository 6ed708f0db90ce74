"""vLLM, perhaps in another environment: apart from it this file needs the standard library alone.

Standard input: one line, the work, as `comal_fast/generation/vllm.py` writes it; it stays open as
long as who wrote it lives. Standard output: a JSON object a line, each one sign of life.

    {"ready": version}                          the model is loaded
    {"tokens": n}                               n tokens so far, about once a second
    {"prompt": i, "responses": [[ids, finished], …]}
    {"error": "Type: text"}                     and the process ends

What vLLM itself says goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

OLDEST = (0, 32)  # earlier ones may read a configuration of transformers 5 as other numbers
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, for which vLLM has kernels
BEAT = 1.0  # seconds between two signs of life


def sample(work: dict[str, Any], say: Any) -> None:
    """Load the policy, sample every prompt, say each prompt's responses as its last one ends."""
    import vllm
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    if vllm.__version_tuple__[:2] < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeError(f"vllm {vllm.__version__} is too old; install vllm>={oldest}")
    adapter = work["adapter"]
    engine = vllm.LLM(
        **work["engine"],
        skip_tokenizer_init=True,
        generation_config="vllm",  # no sampling options but ours
        enable_lora=adapter is not None,
        **({"max_lora_rank": next(r for r in RANKS if r >= work["rank"])} if adapter else {}),
    ).llm_engine
    say({"ready": vllm.__version__})
    params = vllm.SamplingParams(
        **work["sampling"],
        ignore_eos=True,  # it is one of stop_token_ids
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    lora = LoRARequest("policy", 1, adapter) if adapter else None
    for number, prompt in enumerate(work["prompts"]):
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params, lora_request=lora)
    tokens, beat = 0, time.monotonic()
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not output.finished:
                continue
            rows = sorted(output.outputs, key=lambda row: row.index)
            responses = [[list(row.token_ids), row.finish_reason == "stop"] for row in rows]
            tokens += sum(len(ids) for ids, _ in responses)
            say({"prompt": int(output.request_id), "responses": responses})
        if time.monotonic() - beat > BEAT:
            beat = time.monotonic()
            say({"tokens": tokens})


def main() -> None:
    """Do the work on standard input; the whole process group ends with who wrote it."""
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # beside it lies another vllm.py
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM prints

    def say(message: dict[str, Any]) -> None:
        lines.write(json.dumps(message) + "\n")

    def end_with_writer() -> None:
        sys.stdin.read()
        os.killpg(os.getpgid(0), signal.SIGKILL)

    work = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_writer, daemon=True).start()
    status = 0
    try:
        sample(work, say)
    except Exception as error:
        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}"})
        status = 1
    sys.stderr.flush()
    os._exit(status)  # whatever of vLLM's is still there


if __name__ == "__main__":
    main()
