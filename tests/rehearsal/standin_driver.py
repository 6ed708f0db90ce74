"""On a CUDA device that is not there: a whole run, then steps of training in each mode.

standin_driver.py CONFIG OUT.json    what each did and what made the host wait, by line

With `tests/support/standin_site` first on the path, which makes the device.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

MODES: dict[str, list[str]] = {
    "plain": [],
    "one pass": ["training.max_tokens_per_microbatch=100000"],
    "sdpa": ["model.attn_implementation=sdpa"],
    "recomputed": ["training.gradient_checkpointing=true"],
    "activations on the host": [
        "training.gradient_checkpointing=true",
        "training.offload_activations=true",
    ],
    "stochastic rounding": [
        "training.optimizer_state=float32",
        "training.stochastic_rounding=true",
    ],
    "float32 moments": ["training.optimizer_state=float32"],
    "8-bit moments": [
        "training.optimizer_state=8bit",
        "training.stochastic_rounding=true",
        "training.max_grad_norm=0.01",
    ],
    "8-bit in backward": [
        "training.optimizer_state=8bit",
        "training.optimizer_in_backward=true",
        "training.max_grad_norm=0",
    ],
    "in backward": ["training.optimizer_in_backward=true", "training.max_grad_norm=0"],
    "moments on the host": [
        "training.optimizer_state=float32",
        "training.optimizer_offload=true",
        "training.stochastic_rounding=true",
    ],
    "all on the host": [
        "training.optimizer_state=float32",
        "training.optimizer_offload=true",
        "training.optimizer_in_backward=true",
        "training.max_grad_norm=0",
        "training.gradient_checkpointing=true",
        "training.offload_activations=true",
        "training.stochastic_rounding=true",
    ],
    "lora": ["model.lora={r: 4}"],
    "dpo": ["algorithm={prox: dpo, iterations: 1}"],
    "ipo": ["algorithm={prox: ipo, iterations: 1}"],
    "sppo": ["algorithm={prox: sppo, iterations: 1}"],
    "dro": ["algorithm={prox: dro, iterations: 1}"],
    "rebel": ["algorithm={prox: rebel, iterations: 1}"],
    "Liger's kernels": ["model.liger_kernels=on"],
    "Liger's kernels, recomputed": [
        "model.liger_kernels=on",
        "training.activation_memory=1MiB",
    ],
    "Liger's kernels, what fits": [
        "model.liger_kernels=on",
        "training.activation_memory=auto",
        "training.max_tokens_per_microbatch=100000",
    ],
    "deterministic": ["training.deterministic=true"],  # for good: the last
}


def counted(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {f"{kind}: {where}": n for (kind, where), n in counts.most_common()}


def whole_run(config_file: Path) -> dict[str, Any]:
    """Every phase of a run; the waits of each."""
    from comal_fast import loop
    from comal_fast.config import load_config
    from cuda_standin.waits import Waits

    waits: dict[str, Any] = {}

    def watched(name: str, phase: Any) -> Any:
        def run(context: Any, iteration: int) -> None:
            with Waits() as seen:
                phase(context, iteration)
            waits[f"{name} {iteration}"] = counted(seen.counts)

        return run

    loop.RUN.update({name: watched(name, phase) for name, phase in loop.RUN.items()})
    result = loop.run_all(load_config(config_file))
    return {"device": result["device"], "win_rate": result["win_rate"]["mean"], "waits": waits}


def steps(config_file: Path, overrides: list[str]) -> dict[str, Any]:
    """Steps of iteration 1's training; waits of all but the first, which makes what lasts."""
    from comal_fast import loop
    from comal_fast.config import load_config
    from comal_fast.context import Context
    from comal_fast.phases import train
    from cuda_standin.waits import Waits

    context = Context(load_config(config_file, overrides))
    for phase in ("pair", "logps"):  # at hand, unless the prox wants others
        loop.RUN[phase](context, 1)
    model = context.policies.take(0)
    trainer = train.Trainer(context.config, model, *train.load_items(context, 1), 1)
    with trainer:
        rows = [trainer.optimizer_step()]
        passes = len(trainer.passes(trainer.schedule[1][1]))
        with Waits() as seen:
            rows.append(trainer.optimizer_step())
    losses = [row["loss"] for row in rows]
    return {"losses": losses, "passes": passes, "waits": counted(seen.counts)}


def main() -> int:
    config, out = map(Path, sys.argv[1:])
    result: dict[str, Any] = {"run": whole_run(config), "steps": {}}
    for mode, overrides in MODES.items():
        try:
            result["steps"][mode] = steps(config, overrides)
        except Exception as error:
            import traceback

            result["steps"][mode] = {"error": "".join(traceback.format_exception(error))}
    out.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    os._exit(main())  # threads of the device that is not there outlive the interpreter
