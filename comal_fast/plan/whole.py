"""Hours of a whole run, on paper: every phase of all iterations, on one GPU and on several.

Prompts and responses are of typical lengths. Sampling is bound by the bytes of weights and cache
that a token takes, or by its products; judging and log-probs are forward passes; training is the
plan's own step. Reward models are taken to be as large as the policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from comal_fast.config import Config
from comal_fast.config.options import Options
from comal_fast.config.oracle import BradleyTerryConfig, GeneralPreferenceConfig, MixtureConfig
from comal_fast.config.validate import needs_samples
from comal_fast.errors import InputError
from comal_fast.plan import several
from comal_fast.plan.count import forward_parts
from comal_fast.plan.machines import Machine, predict
from comal_fast.plan.modes import LADDER
from comal_fast.plan.search import TYPICAL_PROMPT, TYPICAL_RESPONSE, Fit, items_of_prompt
from comal_fast.plan.shapes import Shape


@dataclass(frozen=True)
class Whole:
    """Hours of each phase over all iterations; None for training where no mode fits."""

    gpus: int
    hours: dict[str, float | None]

    @property
    def total(self) -> float | None:
        """Of all phases."""
        known = [hours for hours in self.hours.values() if hours is not None]
        return sum(known) if len(known) == len(self.hours) else None


@dataclass(frozen=True)
class _Amount:
    """What one iteration does, and how often: prompts, samples of each, pairs of each."""

    prompts: int
    samples: int
    pairs: int  # of a prompt
    chosen: int  # responses of a prompt that are in them
    prompt: int  # tokens
    response: int


def whole(
    config: Config, shape: Shape, fit: Fit, machine: Machine, memory: float, gpus: int
) -> Whole:
    """Hours on `gpus` GPUs. InputError where the number of prompts is not in the configuration."""
    amount = _amount(config)
    work, iterations = fit.work, config.algorithm.iterations
    judges = sum(1 for _ in _judges(config.oracle))
    sampled = iterations * amount.prompts * amount.samples
    asked, answers = 0, config.evaluation.num_generations
    if needs_samples(config):
        interval = config.evaluation.interval
        evaluated = 1 + sum(t % interval == 0 or t == iterations for t in range(1, iterations + 1))
        asked = evaluated * config.data.eval_prompts
    passes = sum(
        1 if t % config.algorithm.ref_update_interval == 0 else 2 for t in range(iterations)
    )
    item = fit.mode.torch_dtype.itemsize

    def forward(prompts: float, responses: int, head: bool) -> float:
        """Seconds of forward passes over prompts with so many responses each."""
        lengths = [amount.prompt + amount.response, *[amount.response] * (responses - 1)]
        seen = amount.response * responses if head else 0
        parts = forward_parts(shape, lengths, seen, item)
        return prompts * sum(row["seconds"] for row in predict(machine, parts))

    slots = max(1, work.generation_batch)
    sampling = (
        (sampled + asked * answers)
        * amount.response
        / slots
        * _decode(shape, machine, amount, slots, item)
    )
    sampling += forward(iterations * amount.prompts + asked, 1, False)
    judging = judges * (
        forward(iterations * amount.prompts, amount.samples, False) + forward(asked, answers, False)
    )
    logps = forward(passes * amount.prompts, amount.chosen, True)
    steps = math.ceil(amount.prompts * amount.pairs * config.training.num_train_epochs / work.pairs)
    seconds: float | None = iterations * steps * fit.seconds
    if gpus > 1:
        each = max(1, fit.tokens // gpus)  # of a step's tokens, a GPU's
        modes = [m for m in LADDER if (m.rank is None) == (fit.mode.rank is None)]
        plans = [several.plan(shape, m, work, machine, memory, gpus, 1, each) for m in modes]
        times = [p.seconds * each / p.tokens for p in plans if p]
        seconds = iterations * steps * min(times) if times else None
    spent = {
        "generate, evaluate": sampling / gpus,
        "judge": judging / gpus,
        "logps": logps / gpus,
        "train": seconds,
    }
    return Whole(gpus, {name: None if s is None else s / 3600 for name, s in spent.items()})


def _amount(config: Config) -> _Amount:
    data = config.data
    if data.pairs is not None or data.prompts_per_iteration is None:
        raise InputError(
            "--hours: how many prompts an iteration has is not known; give "
            "data.prompts_per_iteration" + (", and no data.pairs" if data.pairs else "")
        )
    k = config.generation.num_generations
    pairs, chosen = items_of_prompt(config)
    new = config.generation.max_new_tokens
    limit = min(data.max_prompt_length or data.max_length, data.max_length - new)
    return _Amount(
        data.prompts_per_iteration,
        k,
        pairs,
        chosen,
        min(TYPICAL_PROMPT, limit),
        min(TYPICAL_RESPONSE, new),
    )


def _judges(options: Options) -> Iterator[Options]:
    """The reward models among an oracle's members; others are not counted."""
    if isinstance(options, MixtureConfig):
        for member in options.members:
            yield from _judges(member)
    elif isinstance(options, BradleyTerryConfig | GeneralPreferenceConfig):
        yield options


def _decode(shape: Shape, machine: Machine, amount: _Amount, slots: int, item: int) -> float:
    """Seconds of one token of each of `slots` responses, half of them sampled on average."""
    weights = shape.block_parameters + shape.head_parameters
    cache = slots * (amount.prompt + amount.response / 2) * 2 * shape.keys * shape.layers
    moved = (weights + cache) * item / (machine.bandwidth * machine.elementwise)
    products = 2 * weights * slots / (machine.flops * machine.products)
    return max(moved, products)
