"""Five answers → a configuration that the plan accepts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from comal_fast.config import Config
from comal_fast.config.schema import build
from comal_fast.config.validate import validate
from comal_fast.data.prompts import load_prompts
from comal_fast.errors import InputError
from comal_fast.model.load import find_source
from comal_fast.plan import modes
from comal_fast.plan.machines import MACHINES, nearest
from comal_fast.plan.search import Workload, changes, choose, search
from comal_fast.plan.shapes import read_shape

ORACLES = ("criteria", "bradley_terry", "general_preference", "pairwise_lm", "python")
OPTION_OF = {"python": "function"}  # what the words behind a colon are; of others the model
CPU: dict[str, Any] = {  # what trains a model of some hundred million weights in an hour
    "model": {"dtype": "float32", "device": "cpu"},
    "data": {"prompts_per_iteration": 40, "max_length": 512, "max_prompt_length": 192},
    "generation": {"num_generations": 4, "max_new_tokens": 48, "batch_size": 128},
    "algorithm": {"eta": 0.02, "iterations": 3, "ref_update_interval": 1},
    "training": {
        "learning_rate": 6e-5,
        "num_train_epochs": 1,
        "train_batch_size": 24,  # all pairs of four prompts
        "shuffle": "prompts",
        "max_tokens_per_microbatch": 1024,
    },
}
GPU: dict[str, Any] = {  # the paper's, on fewer prompts
    "model": {"dtype": "bfloat16", "device": "cuda"},
    "data": {"prompts_per_iteration": 1000, "max_length": 2048, "max_prompt_length": 1024},
    "generation": {"num_generations": 5, "max_new_tokens": 1024, "batch_size": 160},
    "algorithm": {"eta": 0.002, "iterations": 6, "ref_update_interval": 2},
    "training": {
        "learning_rate": 5e-7,
        "warmup_ratio": 0.1,
        "num_train_epochs": 1,
        "train_batch_size": 160,  # all pairs of sixteen prompts
        "shuffle": "prompts",
        "max_tokens_per_microbatch": 4096,
    },
}


@dataclass(frozen=True)
class Answers:
    """What is asked."""

    model: str
    """Hub name, folder, or package:NAME."""
    prompts: str
    """File, folder, hub dataset, or `builtin`."""
    oracle: str
    """One of ORACLES, with `:MODEL` or `:FILE.py:NAME` where it takes one."""
    memory: float | None
    """Bytes of the GPU's memory; None: on the CPU."""
    output: str
    """The run directory."""


def configuration(answers: Answers) -> dict[str, Any]:
    """The tree of a configuration. InputError, naming the answer, for one that can't be."""
    base = CPU if answers.memory is None else GPU
    tree: dict[str, Any] = {"output_dir": answers.output}
    tree |= {group: dict(options) for group, options in base.items()}
    tree["model"] = {"name_or_path": answers.model, **_weights(answers.model), **tree["model"]}
    tree["data"] = {"prompts": answers.prompts, **tree["data"]}
    tree["oracle"] = _oracle(answers.oracle)
    tree["pairing"] = {"strategy": "all", "labels": "soft"}
    tree["algorithm"] = {"prox": "inpo", **tree["algorithm"]}
    _sizes(tree)
    if answers.memory is not None:
        _fit(tree, answers.memory)
    validate(build(tree), set())
    return tree


def to_yaml(tree: dict[str, Any], command: str) -> str:
    """The file, beginning with how it was made and what comes next."""
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return f"# {command}\n# Next: comal-fast doctor FILE, and comal-fast run FILE.\n{text}"


def _weights(model: str) -> dict[str, Any]:
    """`gguf_file`, where a folder or package holds one such file and no other weights."""
    source = Path(find_source(model, "--model")).expanduser()
    if not source.is_dir():
        return {}
    files = sorted(file.name for file in source.glob("*.gguf"))
    if not files or any(source.glob("*.safetensors")):
        return {}
    if len(files) > 1:
        raise InputError(
            f"--model {model}: {len(files)} GGUF files in it ({', '.join(files[:3])}); write the "
            "configuration with one of them as model.gguf_file"
        )
    return {"gguf_file": files[0]}


def _oracle(answer: str) -> dict[str, Any]:
    name, colon, rest = answer.partition(":")
    if name not in ORACLES:
        raise InputError(f"--oracle {answer}: expected one of {', '.join(ORACLES)}")
    option = OPTION_OF.get(name, "model")
    if name == "criteria":
        if colon:
            raise InputError(f"--oracle {answer}: criteria take no model")
        return {"name": name}
    if not rest:
        what = "FILE.py:FUNCTION" if option == "function" else "MODEL"
        raise InputError(f"--oracle {answer}: give {name}:{what}")
    return {"name": name, option: rest}


def _sizes(tree: dict[str, Any]) -> None:
    """Held out is a fifth of the prompts, of 2 to 100; the iterations share the others."""
    config: Config = build(tree)
    prompts = load_prompts(config.data)
    held = [p for p in prompts if p.held_out]
    most = len(held) if held else len(prompts) // 5
    evaluated = max(2, min(100, most))
    rest = len(prompts) - (len(held) or evaluated)
    if rest < 1:
        raise InputError(
            f"--prompts {config.data.prompts}: {len(prompts)} prompts; it takes 3 or more"
        )
    tree["data"]["eval_prompts"] = evaluated
    if rest <= tree["data"]["prompts_per_iteration"]:
        del tree["data"]["prompts_per_iteration"]


def _fit(tree: dict[str, Any], memory: float) -> None:
    """The options of the mode that the plan takes for this memory."""
    config = build(tree)
    shape, work = read_shape(config.model), Workload.of(config)
    fits = search(shape, work, MACHINES[nearest(memory)], memory)
    best = choose(fits, memory)
    if best is None:
        leanest = min(fits, key=lambda fit: fit.bytes)
        raise InputError(
            f"--gpu-memory: {config.model.name_or_path} does not fit {memory / 2**30:.0f} GiB; the "
            f"nearest mode, {leanest.mode.name}, needs {leanest.bytes / 2**30:.0f} GiB"
        )
    for name, value in (modes.options(best.mode, shape.layers) | changes(best, work)).items():
        group, _, option = name.partition(".")
        tree[group][option] = value
