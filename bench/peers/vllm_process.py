"""vLLM in a process of its own, for `bench generate`: it needs vllm and the standard library alone.

First line of standard input: the engine's options and the sampling. Then a line, a list of prompts
as token ids, for each run; the answer is a line too: the responses of every prompt.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Answer until standard input ends."""
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))  # other libraries' names lie there
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM prints

    import vllm

    asked = json.loads(sys.stdin.readline())
    engine = vllm.LLM(**asked["engine"], skip_tokenizer_init=True, generation_config="vllm")
    params = vllm.SamplingParams(**asked["sampling"], ignore_eos=True, detokenize=False)
    lines.write(json.dumps({"version": vllm.__version__}) + "\n")
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
        found = engine.generate(prompts, params, use_tqdm=False)
        lines.write(json.dumps([[list(o.token_ids) for o in f.outputs] for f in found]) + "\n")


if __name__ == "__main__":
    main()
