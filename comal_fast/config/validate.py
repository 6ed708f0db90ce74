"""Rules between groups of options; what a single option may be stands beside it."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from comal_fast.config.algorithm import (
    LABELS,
    PAIRING,
    PAST,
    PROX_CHOICE,
    STRATEGY,
    TARGET,
    Regularised,
)
from comal_fast.config.generation import VllmConfig
from comal_fast.config.schema import Config
from comal_fast.config.sizes import parse_bytes
from comal_fast.errors import InputError


def prox_options(config: Config) -> dict[str, Any]:
    """Every option that the chosen prox reads, by its dotted name."""
    algorithm = config.algorithm
    common = {"prox", "iterations", "ref_update_interval"}
    own = {
        f"algorithm.{name}": getattr(algorithm, name)
        for name in type(algorithm).model_fields
        if name not in common and not (name in PAST and name not in getattr(algorithm, "past", ()))
    }
    pairing = {name: getattr(config.pairing, name.split(".")[1]) for name in algorithm.pairing}
    if TARGET in pairing:
        pairing[TARGET] = target_of(config)
    return dict(sorted((own | pairing).items()))


def target_of(c: Config) -> str:
    """Return what pairs are regressed on: `pairing.target`, or what `auto` stands for.

    With two samples a prompt there is one pair, chosen by nobody, so that any strategy is `all`.
    """
    if c.pairing.target != "auto":
        return c.pairing.target
    targets = c.algorithm.targets
    every = c.pairing.strategy == "all" or c.generation.num_generations == 2
    return targets[0] if every or c.data.pairs is not None else targets[-1]


def validate(config: Config, given: set[str]) -> None:
    """Raise InputError for the first rule broken. `given`: the dotted names the user wrote."""
    _pairs(config)
    _target(config)
    _lengths(config)
    _baseline(config)
    _adapters(config)
    _activations(config)
    _ignored(config, given)
    _optimizer(config)
    if config.training.backend == "triton" and importlib.util.find_spec("triton") is None:
        raise InputError("training.backend: triton is not installed; use auto")
    if config.model.device == "cpu":
        check_cpu(config)


def check_cpu(c: Config) -> None:
    """Raise InputError for the first option that a CPU can't do."""
    attention, interpreted = c.model.attn_implementation, os.environ.get("TRITON_INTERPRET") == "1"
    if attention not in ("auto", "sdpa"):
        raise InputError(f"model.attn_implementation: {attention} needs model.device=cuda")
    if c.model.liger_kernels == "on":
        raise InputError("model.liger_kernels: on needs model.device=cuda")
    if c.training.backend == "triton" and not interpreted:
        raise InputError(
            "training.backend: triton needs model.device=cuda (or TRITON_INTERPRET=1); use auto"
        )


def ignored(c: Config) -> dict[str, str]:
    """Options that the others leave without effect, by dotted name: why."""
    reads = ", ".join(prox_options(c)) or "no options"
    found = {
        name: f"prox {c.algorithm.prox} ignores it; it reads {reads}"
        for name in sorted(set(PAIRING) - set(c.algorithm.pairing))
    }
    if LABELS in found:
        found["pairing.soft_labels"] = found[LABELS]  # its older spelling
    if isinstance(c.algorithm, Regularised):
        for name in sorted(set(PAST) - {"method", *c.algorithm.past}):
            readers = " and ".join(PAST[name])
            found[f"algorithm.{name}"] = (
                f"method {c.algorithm.method} ignores it; {readers} read it"
            )
    if c.data.pairs is not None:
        found["data.prompts"] = "data.pairs stands in its place; leave one of the two out"
        found["pairing.strategy"] = "people chose the pairs of data.pairs; leave it out"
        found["pairing.target"] = "of data.pairs the labels alone are known; leave it out"
        if not needs_samples(c):
            why = "nothing is sampled of data.pairs without an oracle; leave it out or name one"
            found |= {f"generation.{name}": why for name in type(c.generation).model_fields}
            found["evaluation.num_generations"] = why
    for limit, checks in c.diagnostics.readers.items():
        if all(getattr(c.diagnostics, name) == "off" for name in checks):
            names = " and ".join(f"diagnostics.{name}" for name in checks)
            are = "is" if len(checks) == 1 else "are"
            found[f"diagnostics.{limit}"] = f"ignored while {names} {are} off; leave it out"
    return found


def needs_samples(c: Config) -> bool:
    """Whether anything is sampled: with `data.pairs` for win rates alone."""
    return c.oracle.name != "none"


def _pairs(c: Config) -> None:
    if c.data.pairs is None:
        if c.oracle.name == "none":
            raise InputError(
                "oracle.name: none, so nobody judges what is sampled; name an oracle, or give "
                "data.pairs that people have judged"
            )
        return
    if c.algorithm.iterations != 1:
        raise InputError(
            f"algorithm.iterations: {c.algorithm.iterations} with data.pairs, which are judged "
            "once and for all; leave it out, or sample from data.prompts with an oracle"
        )
    if STRATEGY not in c.algorithm.pairing:
        known = ", ".join(n for n, v in PROX_CHOICE.variants.items() if STRATEGY in v.pairing)
        raise InputError(
            f"algorithm.prox: {c.algorithm.prox} reads win rates against the policy's own samples, "
            f"and data.pairs has pairs; use one of {known}"
        )


def _target(c: Config) -> None:
    target, samples = target_of(c), c.generation.num_generations
    if c.algorithm.pairing and target not in c.algorithm.targets:
        raise InputError(
            f"pairing.target: {target} is for square losses, whose minimiser is linear in their "
            f"targets; prox {c.algorithm.prox} takes {' or '.join(c.algorithm.targets)}"
        )
    if target == "cross_fit" and samples < 3:
        raise InputError(
            f"pairing.target: cross_fit pairs the samples of one half and compares them with the "
            f"other, which takes generation.num_generations of 3 or more, better 4; it is {samples}"
        )
    if c.data.pairs is not None and c.pairing.labels == "sampled":
        raise InputError(
            "pairing.labels: sampled draws from an oracle's P, and data.pairs has people's own "
            "verdicts; use soft or hard"
        )


def _ignored(c: Config, given: set[str]) -> None:
    for name, why in ignored(c).items():
        if name in given:
            raise InputError(f"{name}: {why}")


def _baseline(c: Config) -> None:
    size, needed = c.training.train_batch_size, c.generation.num_generations
    if c.algorithm.centred and size < needed:
        raise InputError(
            f"training.train_batch_size: {size} is less than generation.num_generations={needed}; "
            f"prox {c.algorithm.prox} takes its baseline from all responses to a prompt"
        )


def _adapters(c: Config) -> None:
    lora = c.model.lora
    if lora is None:
        if c.model.quantization != "none":
            raise InputError(
                f"model.quantization: {c.model.quantization} weights can't be trained themselves; "
                "set model.lora too (`model.lora={}` takes its defaults)"
            )
        return
    if c.training.stochastic_rounding:
        raise InputError(
            "training.stochastic_rounding: what trains under model.lora is float32; leave it out"
        )
    if (
        c.model.quantization == "nf4"
        and isinstance(c.generation, VllmConfig)
        and c.generation.vllm.quantization is None
    ):
        raise InputError(
            "generation.vllm.quantization: model.quantization=nf4 is not what vLLM would sample "
            "from; bitsandbytes holds its weights in 4 bits too"
        )
    needed = {"peft": ("model.lora", "lora")}
    if c.model.quantization == "nf4":
        needed["bitsandbytes"] = ("model.quantization", "qlora")
    for package, (name, extra) in needed.items():
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{name}: needs the package {package}; pip install 'comal-fast[{extra}]'"
            )


def _activations(c: Config) -> None:
    t = c.training
    if t.activation_memory is not None and t.gradient_checkpointing:
        raise InputError(
            "training.activation_memory: gradient_checkpointing recomputes every layer, whatever "
            "the budget; leave one of the two out"
        )
    if t.activation_memory not in (None, "auto"):
        parse_bytes(t.activation_memory, "training.activation_memory")
    if t.offload_activations and not (t.gradient_checkpointing or t.activation_memory):
        raise InputError(
            "training.offload_activations: only recomputed layers have inputs to hold; set "
            "gradient_checkpointing or activation_memory too"
        )


def _lengths(c: Config) -> None:
    if not needs_samples(c):
        return
    limit, prompt, new = c.data.max_length, c.data.max_prompt_length, c.generation.max_new_tokens
    if new >= limit:
        raise InputError(
            f"generation.max_new_tokens: {new} leaves no room for a prompt within "
            f"data.max_length={limit}"
        )
    if prompt is not None and prompt + new > limit:
        raise InputError(
            f"data.max_prompt_length: {prompt} + generation.max_new_tokens={new} exceeds "
            f"data.max_length={limit}"
        )


def _optimizer(c: Config) -> None:
    t = c.training
    if t.optimizer_in_backward and t.max_grad_norm:
        raise InputError(
            f"training.max_grad_norm: {t.max_grad_norm:g} can't be kept with "
            "training.optimizer_in_backward, whose updates come before the norm of all gradients "
            "is known; write max_grad_norm: 0"
        )
    if t.optimizer_in_backward and t.max_skipped_steps:
        raise InputError(
            f"training.max_skipped_steps: {t.max_skipped_steps} with "
            "training.optimizer_in_backward, whose updates come before the norm of all gradients "
            "is known; leave one of the two out"
        )
    if t.stochastic_rounding and c.model.dtype != "bfloat16":
        raise InputError(
            f"training.stochastic_rounding: it is for bfloat16 weights, and model.dtype is "
            f"{c.model.dtype}; leave it out"
        )
    if t.stochastic_rounding and t.optimizer_state == "model":
        raise InputError(
            "training.stochastic_rounding: with optimizer_state=model the moments would still be "
            "rounded to nearest in bfloat16; use optimizer_state=8bit or float32"
        )


def check_trainable(c: Config) -> None:
    """Raise InputError for a policy that can be sampled from, and not trained."""
    if c.model.dtype == "float16":
        raise InputError(
            "model.dtype: float16 can be sampled from, but its gradients would underflow in "
            "training; use bfloat16, or float32"
        )


def check_ranks(config: Config, ranks: int) -> None:
    """Raise InputError for what several ranks can't do."""
    if ranks > 1 and config.phases == "process":
        raise InputError(
            f"phases: process under torchrun with {ranks} ranks: each rank is a process already; "
            "use auto"
        )
