"""The fastest mode that fits: for each way of training, what must be recomputed or made smaller."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from comal_fast.config import Config
from comal_fast.config.algorithm import STRATEGY
from comal_fast.config.sizes import parse_bytes
from comal_fast.config.validate import needs_samples, target_of
from comal_fast.plan import memory, modes
from comal_fast.plan.count import FLASH_2, Load, parts
from comal_fast.plan.elementwise import LIGER
from comal_fast.plan.machines import Machine, predict
from comal_fast.plan.memory import HEADROOM, LargestPass, Peak
from comal_fast.plan.modes import LADDER, Mode
from comal_fast.plan.shapes import Shape

# typical of instruction data; only times depend on them
TYPICAL_PROMPT, TYPICAL_RESPONSE = 256, 384
BESIDE = "copies to host memory (beside the rest)"
AFTER = "copies to host memory"


@dataclass(frozen=True)
class Workload:
    """What is asked of a step and of the other phases, in tokens."""

    pairs: int  # of an optimizer step
    budget: int  # most tokens of a packed pass
    longest: int  # of a prompt and both its responses, at most
    prompt: int  # longest prompt
    new: int  # longest response
    generations: int
    generation_batch: int
    evaluations: int
    shared: int = 1  # pairs of one prompt that a step has together
    responses: int = 2  # that are in them
    liger: bool = True  # layers have Liger's kernels

    @classmethod
    def of(cls, config: Config) -> Workload:
        """The workload of a run."""
        data, generation, training = config.data, config.generation, config.training
        asked = needs_samples(config)
        new = generation.max_new_tokens if asked else data.max_length // 2
        prompt = min(data.max_prompt_length or data.max_length, data.max_length - new)
        people = data.pairs is not None
        return cls(
            pairs=training.train_batch_size,
            budget=training.max_tokens_per_microbatch,
            longest=2 * data.max_length - 1 if people else prompt + 2 * new,
            prompt=prompt,
            new=new,
            generations=0 if people else generation.num_generations,
            # 0: an engine that keeps to its own share of the memory
            generation_batch=getattr(generation, "batch_size", 0),
            evaluations=config.evaluation.num_generations if asked else 0,
            liger=config.model.liger_kernels != "off",
            **_shared(config),
        )

    def batch(self) -> LargestPass:
        """The largest pass; a pair longer than the budget stands alone."""
        alone = self.pairs * self.longest <= self.budget
        tokens = self.pairs * self.longest if alone else max(self.budget, self.longest)
        return LargestPass(tokens, tokens, alone)

    def load(self, mode: Mode, shape: Shape) -> Load:
        """The load of a step of typical lengths, every prompt once."""
        prompt = min(TYPICAL_PROMPT, self.prompt)
        response = min(TYPICAL_RESPONSE, self.new)
        prompts, responses = self.pairs, 2
        if self.shared <= self.pairs:
            prompts, responses = math.ceil(self.pairs / self.shared), self.responses
        lengths = [prompt + response, *[response] * (responses - 1)] * prompts
        return Load(
            lengths,
            responses * response * prompts,
            math.ceil(sum(lengths) / max(self.budget, self.longest)),
            mode.torch_dtype.itemsize,
            min(1.0, mode.recomputed / shape.layers),
            frozen=mode.rank is not None,
            state=mode.state_bytes,
            trained=mode.trained(shape),
            layers=LIGER if self.liger else None,
            attention=FLASH_2,
            sweeps=0.0 if mode.in_backward else 1.0,
        )


def _shared(config: Config) -> dict[str, int]:
    """Return how many pairs of a prompt a step has together, and how many responses those hold."""
    together = config.training.shuffle == "prompts" or config.algorithm.centred
    if not together or config.data.pairs is not None:
        return {}
    items, responses = items_of_prompt(config)
    return {"shared": items, "responses": responses}


def items_of_prompt(config: Config) -> tuple[int, int]:
    """Return (items that a prompt's samples make, responses in them), all samples distinct.

    An item is a pair, or a single response where the prox takes no pairs.
    """
    samples, crossed = config.generation.num_generations, target_of(config) == "cross_fit"
    if STRATEGY not in config.algorithm.pairing:
        return samples, samples
    groups = [samples - samples // 2, samples // 2] if crossed else [samples]
    groups = [size for size in groups if size > 1]
    if config.pairing.strategy == "all":
        return sum(size * (size - 1) // 2 for size in groups), sum(groups)
    return len(groups), 2 * len(groups)


@dataclass(frozen=True)
class Fit:
    """A mode at work: its peak in every phase, and the time of a step."""

    mode: Mode
    work: Workload
    phases: dict[str, Peak]
    rows: list[dict[str, Any]]
    seconds: float
    tokens: int  # of a typical step
    host: float  # bytes of host memory

    @property
    def bytes(self) -> float:
        return max(peak.bytes for peak in self.phases.values())

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def fits(self, usable: float) -> bool:
        return self.bytes <= usable


def assess(shape: Shape, mode: Mode, work: Workload, machine: Machine, ranks: int = 1) -> Fit:
    """Memory of every phase, on each of `ranks` devices, and time of a training step on one."""
    batch, load = work.batch(), work.load(mode, shape)
    generated = [
        memory.peak(memory.generation(shape, mode, work.generation_batch, k, work.prompt, work.new))
        for k in (work.generations, work.evaluations)
        if k and work.generation_batch
    ]
    training = memory.shared("train", memory.training(shape, mode, batch), shape, mode, ranks)
    phases = {"train": memory.peak(training)}
    if generated:
        phases["generate, evaluate"] = max(generated, key=lambda peak: peak.bytes)
    phases["logps"] = memory.peak(memory.log_probs(shape, mode, batch.tokens))
    rows = predict(machine, parts(shape, load))
    seconds = sum(row["seconds"] for row in rows)
    inputs = memory.layer_cost(shape, mode).input * mode.recomputed
    moved = inputs * load.tokens * mode.offload_activations
    if mode.offload_state:
        moved += mode.trained(shape) * mode.state_bytes
        if mode.in_backward:  # each pass but the first takes the sums in, each but the last out
            moved += (load.micro_batches - 1) * mode.gradient_bytes(shape)
    if moved:
        copies = moved / machine.host if machine.host else math.inf
        beside = mode.in_backward or not mode.offload_state
        rows.append(
            {"name": BESIDE if beside else AFTER, "flops": 0.0, "bytes": moved}
            | {"seconds": copies, "bound": "host link"}
        )
        seconds = max(seconds, copies) if beside else seconds + copies
    host = mode.host_bytes(shape, inputs * batch.tokens, 1 if batch.alone else 2)
    return Fit(mode, work, phases, rows, seconds, load.tokens, host)


def usable(device_memory: float) -> float:
    """Bytes of a device's memory that a plan may fill."""
    return device_memory * (1 - HEADROOM)


def search(shape: Shape, work: Workload, machine: Machine, device_memory: float) -> list[Fit]:
    """Each mode of the ladder at its fastest that fits; at its leanest where none does."""
    space = usable(device_memory)
    return [_fastest(shape, mode, work, machine, space) for mode in LADDER]


def choose(fits: list[Fit], device_memory: float) -> Fit | None:
    """The fastest of those that fit and change least in what is computed; None: none fits.

    A step inside the backward pass gives up clipping, some large batches too; an adapter most
    weights.
    """
    fitting = [fit for fit in fits if fit.fits(usable(device_memory))]
    given_up = [(fit.mode.rank is not None, fit.mode.in_backward) for fit in fitting]
    ranked = sorted(zip(given_up, fitting, strict=True), key=lambda x: (x[0], -x[1].rate))
    return ranked[0][1] if ranked else None


def _fastest(shape: Shape, mode: Mode, work: Workload, machine: Machine, space: float) -> Fit:
    found = []
    for smaller in _budgets(mode, work):
        fitted = _smaller_batches(mode, smaller, shape, space)
        leanest = least_recomputed(shape, mode, fitted.batch(), space)
        found.append(assess(shape, leanest, fitted, machine))
    fitting = [fit for fit in found if fit.fits(space)]
    if fitting:
        return max(fitting, key=lambda fit: fit.rate)
    return min(found, key=lambda fit: fit.bytes)


def _budgets(mode: Mode, work: Workload) -> list[Workload]:
    """The workload under smaller and smaller budgets, halved as long as a pair has room.

    The first is that of a whole step, where a step is one pass.
    """
    whole = work.pairs * work.longest if mode.one_pass else 0
    budgets = [max(work.budget, work.longest, whole)]
    while budgets[-1] // 2 >= work.longest:
        budgets.append(budgets[-1] // 2)
    return [replace(work, budget=budget) for budget in budgets]


def _smaller_batches(mode: Mode, work: Workload, shape: Shape, space: float) -> Workload:
    """The workload with generation in batches that fit, and a step in one pass where it must be."""
    batch = work.generation_batch
    counts = [k for k in (work.generations, work.evaluations) if k]  # of pairs none
    step = max(counts, default=batch)
    while batch > step:
        peaks = [
            memory.peak(memory.generation(shape, mode, batch, k, work.prompt, work.new)).bytes
            for k in counts
        ]
        if max(peaks) <= space:
            break
        batch = max(step, batch // 2 // step * step)
    work = replace(work, generation_batch=batch)
    if mode.one_pass:
        work = replace(work, pairs=min(work.pairs, max(1, work.budget // work.longest)))
    return work


def least_recomputed(shape: Shape, mode: Mode, batch: LargestPass, space: float) -> Mode:
    """The mode with as few recomputed layers as fit; all of them, their inputs in host memory, if
    nothing less does."""

    def fits(layers: int, offload: bool = False) -> bool:
        tried = replace(mode, recomputed=layers, offload_activations=offload)
        return memory.peak(memory.training(shape, tried, batch)).bytes <= space

    for layers in range(shape.layers + 1):
        if fits(layers):
            return replace(mode, recomputed=layers)
    return replace(mode, recomputed=shape.layers, offload_activations=True)


def configured(
    config: Config, shape: Shape, device_memory: float, batch: LargestPass | None = None
) -> Mode:
    """Return the mode of a configuration, with as many recomputed layers as its budget asks for.

    Args:
        config: The run's configuration.
        shape: The model's.
        device_memory: Bytes of the device.
        batch: The largest pass; None: what the configuration allows.
    """
    mode = modes.mode_of(config, shape.layers)
    batch = batch or Workload.of(config).batch()
    if config.training.activation_memory is None:
        return mode
    if config.training.activation_memory != "auto":
        count = budgeted_layers(config, shape, batch.tokens)
    else:
        count = least_recomputed(shape, mode, batch, usable(device_memory)).recomputed
    return replace(mode, recomputed=count)


def budgeted_layers(config: Config, shape: Shape, tokens: int, cuda: bool = True) -> int:
    """Recomputed layers under a size of `training.activation_memory`, for a pass of `tokens`."""
    each = memory.layer_cost(shape, modes.mode_of(config, shape.layers), cuda)
    budget = parse_bytes(config.training.activation_memory or "", "training.activation_memory")
    return layers_to_recompute(budget, tokens, shape.layers, each.layer, each.input)


def layers_to_recompute(budget: float, tokens: int, layers: int, kept: float, inputs: float) -> int:
    """The least number of recomputed layers under which all layers keep at most `budget` bytes.

    kept, inputs: bytes a token that a layer keeps in either case. All of them where even
    that is too much: what then remains is their inputs.
    """
    excess = layers * kept * tokens - budget
    if excess <= 0:
        return 0
    return min(layers, math.ceil(excess / ((kept - inputs) * tokens)))


def changes(fit: Fit, work: Workload) -> dict[str, Any]:
    """Options by which this fit's sizes differ from what was asked for."""
    own = fit.work
    pairs = [
        ("training.train_batch_size", own.pairs, work.pairs),
        ("training.max_tokens_per_microbatch", own.budget, work.budget),
        ("generation.batch_size", own.generation_batch, work.generation_batch),
    ]
    return {name: mine for name, mine, asked in pairs if mine != asked}
