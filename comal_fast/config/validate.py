"""Every rule that a configuration must keep, in one place."""

from __future__ import annotations

import importlib.util
from functools import reduce
from typing import Any

from comal_fast.config.schema import Config
from comal_fast.config.sizes import parse_bytes
from comal_fast.errors import InputError
from comal_fast.game.preference import load_game
from comal_fast.oracles.criteria import CRITERIA

# Which choice reads which option: an option that the chosen one ignores is an error.
_PAIRS = {"pairing.strategy", "pairing.soft_labels"}
_STEP = {"algorithm.eta", "algorithm.tau_eta_ratio"}
PROX_OPTIONS: dict[str, set[str]] = {
    "inpo": _STEP | _PAIRS,
    "ipo": {"algorithm.eta"} | _PAIRS,
    "dpo": {"algorithm.beta", "algorithm.label_smoothing"} | _PAIRS,
    "sppo": _STEP | {"algorithm.log_z"},
    "dro": _STEP,
    "rebel": _STEP | {"pairing.strategy"},
}
ORACLE_OPTIONS: dict[str, set[str]] = {
    "criteria": {"oracle.weights", "oracle.temperatures", "oracle.target_words"},
    "matrix": {"oracle.game", "oracle.unknown_wins"},
}
# Which diagnostic reads which limit: a limit of one that is off is an error.
DIAGNOSTIC_LIMITS = {
    "divergence": {"max_grad_norm_growth", "max_log_ratio"},
    "cycling": {"cycling_return", "probe_responses"},
    "slow_convergence": {"slow_window", "slow_kl", "slow_win_rate"},
    "reference_drift": {"max_kl_to_reference"},
    "inner_accuracy": {"inner_c1"},
}


def option(config: Config, name: str) -> Any:
    """The value of a dotted name."""
    return reduce(getattr, name.split("."), config)


def prox_options(config: Config) -> dict[str, Any]:
    """Every option that the chosen prox reads, by its dotted name."""
    return {name: option(config, name) for name in sorted(PROX_OPTIONS[config.algorithm.prox])}


def validate(config: Config, given: set[str]) -> None:
    """Raise ValueError for the first rule broken. `given`: the dotted names the user wrote."""
    for name, value, low in _minima(config):
        if value is not None and value < low:
            raise InputError(f"{name}: {value} is too small; it must be at least {low}")
    for name, value in _positive(config):
        if not 0 < value < float("inf"):
            raise InputError(f"{name}: {value} is not a positive number")
    for name, value, high in _shares(config):
        if not 0 <= value <= high:
            raise InputError(f"{name}: {value} is outside [0, {high:g}]")
    _lengths(config)
    _ignored("oracle", config.oracle.name, ORACLE_OPTIONS, given)
    _oracle(config)
    _ignored("prox", config.algorithm.prox, PROX_OPTIONS, given)
    _baseline(config)
    _adapters(config)
    _activations(config)
    _diagnostics(config, given)
    _optimizer(config)
    attention = config.model.attn_implementation
    if config.model.device == "cpu" and attention not in ("auto", "sdpa"):
        raise InputError(f"model.attn_implementation: {attention} needs model.device=cuda")
    if config.model.device == "cpu" and config.model.liger_kernels == "on":
        raise InputError("model.liger_kernels: on needs model.device=cuda")
    if not config.output_dir:
        raise InputError("output_dir: empty; give a folder")


def _ignored(kind: str, chosen: str, table: dict[str, set[str]], given: set[str]) -> None:
    for name in sorted(set[str]().union(*table.values()) - table[chosen]):
        if any(g == name or g.startswith(f"{name}.") for g in given):
            raise InputError(
                f"{name}: {kind} {chosen} ignores it; it reads {', '.join(sorted(table[chosen]))}"
            )


def _baseline(c: Config) -> None:
    size, needed = c.training.train_batch_size, c.generation.num_generations
    if c.algorithm.prox == "dro" and size < needed:
        raise InputError(
            f"training.train_batch_size: {size} is less than generation.num_generations={needed}; "
            "prox dro takes its baseline from all responses to a prompt"
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
    if not 0 <= lora.dropout < 1:
        raise InputError(f"model.lora.dropout: {lora.dropout} is outside [0, 1)")
    targets = lora.target_modules
    if not targets or ("all-linear" in targets and len(targets) > 1):
        raise InputError(
            f"model.lora.target_modules: {targets}; give names of layers, or all-linear alone"
        )
    if c.training.stochastic_rounding:
        raise InputError(
            "training.stochastic_rounding: what trains under model.lora is float32; leave it out"
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


def _minima(c: Config) -> list[tuple[str, float | None, float]]:
    lora = c.model.lora
    return [
        ("seed", c.seed, 0),
        ("model.lora.r", lora.r if lora else None, 1),
        ("model.lora.alpha", lora.alpha if lora else None, 1),
        ("data.prompts_per_iteration", c.data.prompts_per_iteration, 1),
        ("data.eval_prompts", c.data.eval_prompts, 2),
        ("data.max_length", c.data.max_length, 2),
        ("data.max_prompt_length", c.data.max_prompt_length, 1),
        ("generation.num_generations", c.generation.num_generations, 2),
        ("generation.max_new_tokens", c.generation.max_new_tokens, 1),
        ("generation.batch_size", c.generation.batch_size, 1),
        ("oracle.target_words", c.oracle.target_words, 1),
        ("algorithm.iterations", c.algorithm.iterations, 1),
        ("algorithm.ref_update_interval", c.algorithm.ref_update_interval, 1),
        ("training.weight_decay", c.training.weight_decay, 0),
        ("training.max_grad_norm", c.training.max_grad_norm, 0),
        ("training.num_train_epochs", c.training.num_train_epochs, 1),
        ("training.train_batch_size", c.training.train_batch_size, 1),
        ("training.max_tokens_per_microbatch", c.training.max_tokens_per_microbatch, 1),
        ("training.save_steps", c.training.save_steps, 0),
        ("evaluation.num_generations", c.evaluation.num_generations, 1),
        ("evaluation.interval", c.evaluation.interval, 1),
        ("evaluation.bootstrap", c.evaluation.bootstrap, 100),
        ("diagnostics.max_grad_norm_growth", c.diagnostics.max_grad_norm_growth, 1),
        ("diagnostics.probe_responses", c.diagnostics.probe_responses, 2),
        ("diagnostics.slow_window", c.diagnostics.slow_window, 1),
        ("diagnostics.slow_kl", c.diagnostics.slow_kl, 0),
        ("diagnostics.slow_win_rate", c.diagnostics.slow_win_rate, 0),
    ]


def _positive(c: Config) -> list[tuple[str, float]]:
    return [
        ("generation.temperature", c.generation.temperature),
        ("generation.top_p", c.generation.top_p),
        ("algorithm.eta", c.algorithm.eta),
        ("algorithm.beta", c.algorithm.beta),
        ("training.learning_rate", c.training.learning_rate),
        ("diagnostics.max_log_ratio", c.diagnostics.max_log_ratio),
        ("diagnostics.max_kl_to_reference", c.diagnostics.max_kl_to_reference),
        ("diagnostics.inner_c1", c.diagnostics.inner_c1),
    ]


def _shares(c: Config) -> list[tuple[str, float, float]]:
    return [
        ("generation.top_p", c.generation.top_p, 1),
        ("algorithm.tau_eta_ratio", c.algorithm.tau_eta_ratio, 1),
        ("algorithm.label_smoothing", c.algorithm.label_smoothing, 0.49),
        ("training.warmup_ratio", c.training.warmup_ratio, 1),
        ("oracle.unknown_wins", c.oracle.unknown_wins, 0.5),
        ("diagnostics.cycling_return", c.diagnostics.cycling_return, 1),
    ]


def _lengths(c: Config) -> None:
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


def _oracle(c: Config) -> None:
    if c.oracle.name == "matrix":
        if c.oracle.game is None:
            raise InputError("oracle.game: missing, and oracle matrix needs it; give a JSON file")
        try:
            load_game(c.oracle.game)
        except InputError as error:
            raise InputError(f"oracle.game {error}") from None
    for group in ("weights", "temperatures"):
        for name, value in getattr(c.oracle, group).items():
            if name not in CRITERIA:
                raise InputError(
                    f"oracle.{group}.{name}: no such criterion; known: {', '.join(CRITERIA)}"
                )
            if value < 0 or (group == "temperatures" and value == 0):
                raise InputError(f"oracle.{group}.{name}: {value} must be positive")
    if c.oracle.weights and sum(c.oracle.weights.values()) <= 0:
        raise InputError("oracle.weights: all are zero; at least one must be positive")


def _optimizer(c: Config) -> None:
    t = c.training
    if t.optimizer_in_backward and t.max_grad_norm:
        raise InputError(
            f"training.max_grad_norm: {t.max_grad_norm:g} can't be kept with "
            "training.optimizer_in_backward, whose updates come before the norm of all gradients "
            "is known; write max_grad_norm: 0"
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


def _diagnostics(c: Config, given: set[str]) -> None:
    for name, limits in DIAGNOSTIC_LIMITS.items():
        for limit in limits:
            if getattr(c.diagnostics, name) == "off" and f"diagnostics.{limit}" in given:
                raise InputError(
                    f"diagnostics.{limit}: ignored while diagnostics.{name} is off; leave it out"
                )


def check_ranks(config: Config, ranks: int) -> None:
    """Raise ValueError for the first option that several ranks can't keep exactly."""
    if ranks == 1:
        return
    training = config.training
    refused = [
        (
            "training.optimizer_state: 8bit",
            training.optimizer_state == "8bit",
            "its scales belong to blocks of one rank's part; use float32",
        ),
        (
            "training.optimizer_offload",
            training.optimizer_offload,
            "the moments are sharded already; leave it out",
        ),
        (
            "model.quantization: nf4",
            config.model.quantization == "nf4",
            "bitsandbytes' packed weights are not sharded; use model.lora on weights of 16 bits",
        ),
        (
            "phases: process",
            config.phases == "process",
            "each rank is a process already; use auto",
        ),
    ]
    for name, given, why in refused:
        if given:
            raise InputError(f"{name} under torchrun with {ranks} ranks: {why}")
