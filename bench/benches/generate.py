"""Sampling: this library's decode loop against transformers' two and vLLM.

Every response has the same number of tokens: nothing ends one. What is sampled must be as likely
under the model, on average, as what plain `generate` samples, or there is no time.
"""

from __future__ import annotations

import argparse
import ctypes
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from bench import models, options, record
from bench.bench import Bench, Call
from bench.measure import hardware
from bench.measure.timing import interleaved, summary
from bench.models import MODELS, SMOLLM2, TINY
from bench.peers.vllm import Vllm
from bench.record import Record, Row, reason
from bench.render import plots, terminal
from bench.render.formats import Rows, device_text, spread
from bench.render.markdown import section
from comal_fast.config.generation import TransformersConfig
from comal_fast.config.schema import DataConfig
from comal_fast.data.prompts import load_prompts
from comal_fast.errors import InputError
from comal_fast.generation.decode import Decoder
from comal_fast.generation.engine import Response
from comal_fast.model.logps import response_logps
from comal_fast.plan.shapes import Shape
from comal_fast.system.allocator import keep_freed_memory
from comal_fast.system.peak import bytes_in_use, peak_bytes, start_peak
from comal_fast.system.terminal import progress
from comal_kernels.packing import PromptResponse

OURS, PLAIN, STATIC, CONTINUOUS, VLLM, FLOOR = (
    "comal-fast",
    "transformers generate",
    "transformers generate, static cache",
    "transformers continuous batching",
    "vLLM",
    "floor",
)
SHORTEST, LONGEST = 30, 160  # tokens of a prompt, as in configs/demo.yaml
FEW = 160  # rows sampled at once: records of more have a name of their own
SURPRISE = 5.0  # standard errors by which two means of log-probs may differ
Sampled = list[tuple[list[int], list[int]]]  # prompt and response of each row
Work = Callable[[], Sampled]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `generate`."""
    options.add(parser, "device", "dtype", "repeat")
    parser.add_argument("--model", choices=tuple(MODELS), help="default: what suits the device")
    parser.add_argument("--count", type=options.positive, default=40, help="prompts")
    parser.add_argument("--responses", type=options.positive, default=4, help="to each prompt")
    parser.add_argument("--tokens", type=options.positive, default=48, help="of each response")
    parser.add_argument("--vllm", metavar="PYTHON", help="a Python whose environment has vLLM")


def run(args: argparse.Namespace) -> Record:
    """Times of all contenders, in turns, and the floor."""
    cuda, dtype = args.device.type == "cuda", options.dtype(args)
    if not cuda:
        keep_freed_memory()  # as every run on a CPU does
    name = options.default(args, "model", SMOLLM2, "llama3-8b")
    model = models.load(name, args.device, dtype)
    model.generation_config.eos_token_id = None
    prompts = make_prompts(name, args.count)
    each, new = args.responses, args.tokens
    jobs: dict[str, Work] = {
        OURS: lambda: ours(model, prompts, each, new),
        PLAIN: lambda: theirs(model, prompts, each, new),
        STATIC: lambda: theirs(
            model, prompts, each, new, cache_implementation="static", disable_compile=True
        ),
        CONTINUOUS: lambda: continuous(model, prompts, each, new),
    }
    with ExitStack() as stack:
        if args.vllm:
            engine = stack.enter_context(vllm(args.vllm, model, prompts, each, new))
            jobs[f"{VLLM} {engine.version}"] = lambda: served(engine, prompts)
        machine = hardware.measure(args.device, dtype, 0.0, small=name == TINY)
        least = floor(MODELS[name], prompts, each, new, dtype.itemsize, machine)

        def recorded(rows: dict[str, Row]) -> Record:
            return record.new(
                "generate" if args.count * args.responses <= FEW else "generate-many",
                args.device,
                model=name,
                shape={
                    "dtype": str(dtype).removeprefix("torch."),
                    "prompts": len(prompts),
                    "responses": each,
                    "tokens": new,
                    "prompt_tokens": sum(map(len, prompts)),
                },
                machine={"flops": machine.flops, "bandwidth": machine.bandwidth},
                rows=[{"name": FLOOR, "seconds": summary([least])}, *rows.values()],
            )

        return recorded(timed(args, model, jobs, lambda rows: args.keep(recorded(rows))))


def timed(
    args: argparse.Namespace,
    model: Any,
    jobs: dict[str, Work],
    keep: Callable[[dict[str, Row]], None],
) -> dict[str, Row]:
    """Return a row a contender: its times in turns with the others', or why there are none.

    `keep` is given the rows so far after every round.
    """
    rows = {job: Row(name=job) for job in jobs}
    with progress("checking", len(jobs), "runs") as advance:
        told = {}
        for job, work in jobs.items():
            try:
                give_back(args.device)
                before = bytes_in_use(args.device)
                start_peak(args.device)
                sampled = work()
                if not job.startswith(VLLM):  # a process of its own
                    rows[job]["memory"] = peak_bytes(args.device) - before
                told[job] = likelihood(model, sampled, args.tokens)
            except Exception as error:  # out of memory, a version that can't
                rows[job]["why"] = reason(error)
            advance()
    agree(rows, told)
    right = {job: work for job, work in jobs.items() if "why" not in rows[job]}
    repeat = options.default(args, "repeat", 3, 5)

    def add(times: dict[str, list[float]]) -> None:
        for job, seconds in times.items():
            rows[job]["seconds"] = summary(seconds)
        keep(rows)

    with progress("sampling", repeat * len(right), "runs") as advance:
        interleaved(right, repeat, args.device, advance, add)
    return rows


def give_back(device: torch.device) -> None:
    """Return freed memory to the device, or to the system, so that the next one's is counted."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def make_prompts(name: str, count: int) -> list[list[int]]:
    """Return the built-in prompts in SmolLM2's chat template; for other shapes random words."""
    if name != SMOLLM2:
        draw = np.random.default_rng(0)
        lengths = draw.integers(SHORTEST, LONGEST + 1, count)
        return [draw.integers(3, MODELS[name].vocab, n).tolist() for n in lengths]
    tokenizer = models.load_smollm2_tokenizer()
    found = []
    for prompt in load_prompts(DataConfig()):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.text}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= LONGEST:
            found.append(ids)
    if count > len(found):
        raise InputError(f"--count: {count} prompts are more than the {len(found)} there are")
    return found[:count]


def ours(model: Any, prompts: list[list[int]], each: int, new: int) -> Sampled:
    """By this library's decode loop, all rows at once."""
    config = TransformersConfig(max_new_tokens=new, batch_size=len(prompts) * each)
    found: dict[int, list[Response]] = {}
    for ended in Decoder(model, config, [], "bench", prompts, each).run():
        found |= ended
    return [(p, r.ids) for i, p in enumerate(prompts) for r in found[i]]


def theirs(model: Any, prompts: list[list[int]], each: int, new: int, **arguments: Any) -> Sampled:
    """By `generate`, all rows at once, padded on the left."""
    longest = max(map(len, prompts))
    rows = [p for p in prompts for _ in range(each)]
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in rows])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask.to(model.device),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=new,
            pad_token_id=0,
            use_cache=True,
            **arguments,
        )
    return list(zip(rows, output[:, longest:].tolist(), strict=True))


def continuous(model: Any, prompts: list[list[int]], each: int, new: int) -> Sampled:
    """By `generate_batch`, which lets rows in and out and pages its cache."""
    sampling = GenerationConfig(
        do_sample=True,
        top_k=0,
        top_p=1.0,
        temperature=1.0,
        max_new_tokens=new,
        num_return_sequences=each,
        eos_token_id=-1,
        pad_token_id=0,
    )
    found = model.generate_batch(prompts, generation_config=sampling)
    return [(list(row.prompt_ids), list(row.generated_tokens)) for row in found.values()]


def vllm(python: str, model: Any, prompts: list[list[int]], each: int, new: int) -> Vllm:
    """vLLM with the same weights, all rows at once."""
    sampling = {"n": each, "max_tokens": new, "temperature": 1.0}
    longest = max(map(len, prompts)) + new
    return Vllm(python, model, longest, len(prompts) * each, sampling)


def served(engine: Vllm, prompts: list[list[int]]) -> Sampled:
    """By vLLM, which is loaded and warm."""
    found = engine(prompts)
    return [(p, ids) for p, rows in zip(prompts, found, strict=True) for ids in rows]


def likelihood(model: Any, sampled: Sampled, new: int) -> tuple[float, float]:
    """(mean log-prob of a token, its standard error). ValueError for responses of other lengths."""
    if any(len(response) != new for _, response in sampled):
        raise ValueError(f"not every response has {new} tokens")
    sequences = [PromptResponse(*pair) for pair in sampled]
    means = response_logps(model, sequences, max_tokens=4096) / new
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means)))


def agree(rows: dict[str, Row], told: dict[str, tuple[float, float]]) -> None:
    """Say why in the rows of those that sample another distribution than plain `generate`."""
    if PLAIN not in told:
        return
    plain, about = told[PLAIN]
    for job, (mean, error) in told.items():
        rows[job]["logp"] = mean
        off = abs(mean - plain) / math.hypot(error, about)
        if job != PLAIN and not off <= SURPRISE:
            rows[job]["why"] = (
                f"wrong result, not timed: mean log-prob {mean:.4f}, plain generate's {plain:.4f}, "
                f"{off:.1f} standard errors apart"
            )


def floor(
    shape: Shape, prompts: list[list[int]], each: int, new: int, itemsize: int, machine: Any
) -> float:
    """Seconds that none can do without: products at the measured rate, or bytes at that of a copy.

    A prompt is read once for all its responses, and its last word only needs the head.
    """
    tokens, rows = sum(map(len, prompts)), len(prompts) * each
    head, blocks = shape.head_parameters, shape.block_parameters
    seconds = 2 * (tokens * blocks + len(prompts) * head) / machine.flops
    word = 2 * shape.layers * shape.keys * itemsize  # of a token's keys and values
    pairs = 4 * shape.layers * shape.queries  # FLOP of a query and a key
    for held in range(1, new):
        flops = rows * 2 * (blocks + head) + pairs * (each * tokens + rows * held)
        read = (blocks + head) * itemsize + word * (tokens + rows * held)
        seconds += max(flops / machine.flops, read / machine.bandwidth)
    return seconds


def generate_rows(found: Record) -> Rows:
    """A row a contender, fastest first; memory beside the weights."""
    shape = found["shape"]
    told = shape["prompts"] * shape["responses"] * shape["tokens"]
    timed = [row for row in found["rows"] if "seconds" in row]
    timed.sort(key=lambda row: row["seconds"]["median"])
    base = next(row["seconds"]["median"] for row in timed if row["name"] == FLOOR)
    plain = next((r["seconds"]["median"] for r in timed if r["name"] == PLAIN), None)
    cells = [
        [
            row["name"],
            spread(row["seconds"], "s"),
            f"{told / row['seconds']['median']:.0f}",
            f"{row['seconds']['median'] / base:.2f}",
            f"{plain / row['seconds']['median']:.2f} ×" if plain else "",
            f"{row['memory'] / 2**30:.2f}" if "memory" in row else "",
            f"{row['logp']:.3f}" if "logp" in row else "",
        ]
        for row in timed
    ]
    columns = ["contender", "s (quartiles)", "tokens/s", "× floor", "speed", "GiB", "mean log-prob"]
    return columns, cells


def about(found: Record) -> str:
    """What was sampled."""
    shape = found["shape"]
    return (
        f"{shape['prompts']} prompts ({shape['prompt_tokens']} tokens) × {shape['responses']} "
        f"responses × {shape['tokens']} tokens by {found['model']}, {shape['dtype']}"
    )


def show(found: Record) -> None:
    """Print the table."""
    terminal.table(f"{about(found)}; {device_text(found)}", generate_rows(found))
    terminal.refused(found)


def markdown(found: Record, tokens: int) -> str:
    """The table as a section of a document."""
    return section(found, f"{about(found)}:", generate_rows(found))


def draw(found: Record) -> bytes:
    """A picture: a bar a contender."""
    return plots.bars(found["rows"], lambda tokens: f"{about(found)}, {found['device']['name']}")


BENCH = Bench(
    verb="generate",
    help="sampling, against transformers and vLLM",
    add_options=add_options,
    run=run,
    records=("generate", "generate-many"),
    show=show,
    markdown=markdown,
    draw=draw,
    failed=lambda found: any(r["name"] == OURS and r.get("why") for r in found["rows"]),
    in_all=(
        Call("cpu", 7, "--count 16 --tokens 24 --repeat 1"),
        Call("cuda", 6, "--count 32 --tokens 128"),
    ),
)
