"""Judging by a reward model: this library's packed passes against transformers' padded batches.

Conversations of several responses a prompt, from texts to rewards. The rewards must be those of one
conversation at a time, or there is no time. Of several batch sizes the fastest counts.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import options, record
from bench.bench import Bench, Call
from bench.measure.timing import interleaved, summary
from bench.models import SMOLLM2, load_smollm2, load_smollm2_tokenizer
from bench.record import Record, Row
from bench.render import terminal
from bench.render.formats import Rows, device_text, spread
from bench.render.markdown import section
from comal_fast.config.oracle import BradleyTerryConfig
from comal_fast.config.schema import DataConfig
from comal_fast.data.prompts import Messages, load_prompts
from comal_fast.errors import InputError
from comal_fast.oracles.bradley_terry import BradleyTerryOracle
from comal_fast.system.terminal import progress

OURS, PADDED, SORTED = "comal-fast", "transformers, padded", "transformers, sorted by length"
SIZES = (1, 2, 4, 8, 16, 32)
LONGEST_PROMPT = 160  # tokens of the last user message, as in configs/demo.yaml
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # of rewards of spread 1
Asked = list[tuple[Messages, list[str]]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of `judge`."""
    options.add(parser, "device", "dtype", "repeat")
    parser.add_argument("--count", type=options.positive, default=40, help="prompts")
    parser.add_argument("--responses", type=options.positive, default=5, help="to each prompt")
    parser.add_argument(
        "--tokens", type=options.positive, default=96, help="of the longest response"
    )
    parser.add_argument("--prompts", default="builtin", help="as data.prompts")
    parser.add_argument(
        "--sizes", type=options.positive, nargs="+", default=SIZES, help="of padded batches"
    )


def run(args: argparse.Namespace) -> Record:
    """Times of all contenders, in turns."""
    dtype = options.dtype(args)
    name = str(dtype).removeprefix("torch.")
    if name not in TOLERANCE:
        raise InputError(f"--dtype: {name} is not judged in; use {', '.join(TOLERANCE)}")
    tokenizer = load_smollm2_tokenizer()
    asked = make_asked(tokenizer, args.prompts, args.count, args.responses, args.tokens)
    with tempfile.TemporaryDirectory() as folder:
        save_reward(Path(folder), tokenizer, dtype)
        given: dict[str, Any] = {"model": folder, "dtype": name, "device": str(args.device)}
        oracle = BradleyTerryOracle(BradleyTerryConfig(**given, batch_size=len(asked) * 99))
        oracle.model  # noqa: B018 - loaded now, so that it is not timed
        plain = Plain(oracle.model, oracle.tokenizer)
    alone = plain.rewards(asked, 1, in_order=True)
    jobs: dict[str, Callable[[], np.ndarray]] = {OURS: lambda: oracle.rewards(asked)}
    for size in args.sizes:
        jobs[f"{PADDED}/{size}"] = lambda size=size: plain.rewards(asked, size, True)  # type: ignore[misc]
        jobs[f"{SORTED}/{size}"] = lambda size=size: plain.rewards(asked, size, False)  # type: ignore[misc]
    with progress("checking", len(jobs), "runs") as advance:
        gaps = {}
        for job, work in jobs.items():
            gaps[job] = float(np.abs(work() - alone).max())
            advance()
    right = {j: w for j, w in jobs.items() if gaps[j] <= TOLERANCE[name] * max(1.0, alone.std())}
    repeat = options.default(args, "repeat", 3, 10)
    with progress("judging", repeat * len(right), "runs") as advance:
        times = interleaved(right, repeat, args.device, advance)
    rows = [_best(n, jobs, times, gaps) for n in (OURS, PADDED, SORTED)]
    ids = [[plain.ids(m, r) for r in rs] for m, rs in asked]
    return record.new(
        "judge",
        args.device,
        model=SMOLLM2,
        shape={
            "dtype": name,
            "prompts": len(asked),
            "responses": args.responses,
            "tokens": sum(len(row) for group in ids for row in group),
            "distinct_tokens": sum(distinct(group) for group in ids),
        },
        rows=rows,
    )


def make_asked(tokenizer: Any, prompts: str, count: int, responses: int, longest: int) -> Asked:
    """Prompts, each with texts of people as responses: ¼ to 1 times `longest` tokens."""
    loaded = [
        prompt
        for prompt in load_prompts(DataConfig(prompts=prompts))
        if len(tokenizer(prompt.text)["input_ids"]) <= LONGEST_PROMPT
    ]
    if len(loaded) < 2 * count:
        raise InputError(f"--count: {count} prompts and as many others are more than {len(loaded)}")
    pick = random.Random(0)
    pick.shuffle(loaded)
    words = tokenizer("\n".join(p.text for p in loaded[count:]), add_special_tokens=False)
    ids = words["input_ids"]
    asked: Asked = []
    for prompt in loaded[:count]:
        texts = []
        for _ in range(responses):
            length = pick.randint(longest // 4, longest)
            start = pick.randrange(len(ids) - length)
            texts.append(tokenizer.decode(ids[start : start + length]))
        asked.append((prompt.messages, texts))
    return asked


def save_reward(folder: Path, tokenizer: Any, dtype: torch.dtype) -> None:
    """SmolLM2 with a seeded random head, as a folder."""
    from transformers import AutoModelForSequenceClassification

    language = load_smollm2(torch.device("cpu"), dtype)
    config = language.config
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    model.base_model.load_state_dict(language.base_model.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Plain:
    """transformers alone: the chat template, padding on the right, the model's own forward."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def ids(self, messages: Messages, response: str) -> list[int]:
        """Of one conversation."""
        turns = [{"role": m[0], "content": m[1]} for m in (*messages, ("assistant", response))]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    @torch.inference_mode()
    def rewards(self, asked: Asked, size: int, in_order: bool) -> np.ndarray:
        """(S,) rewards, in batches of `size` conversations in order, or by length."""
        rows = [self.ids(messages, text) for messages, texts in asked for text in texts]
        order = list(range(len(rows)))
        if not in_order:
            order.sort(key=lambda i: len(rows[i]))
        found = np.zeros(len(rows))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            padded = self.tokenizer.pad(
                {"input_ids": [rows[i] for i in batch]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            found[batch] = self.model(**padded).logits[:, 0].double().cpu().numpy()
        return found


def distinct(group: list[list[int]]) -> int:
    """Tokens of the sequences, their common beginning once."""
    first, last = min(group), max(group)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return same + sum(len(row) - same for row in group)


def _best(
    name: str, jobs: dict[str, Any], times: dict[str, list[float]], gaps: dict[str, float]
) -> Row:
    mine = [job for job in jobs if job.split("/")[0] == name]
    timed = {job: summary(times[job]) for job in mine if job in times}
    if not timed:
        return {"name": name, "why": f"rewards off by {max(gaps[job] for job in mine):.2g}"}
    best = min(timed, key=lambda job: timed[job]["median"])
    variant = f"{best.split('/')[1]} at once" if "/" in best else "packed, prompts shared"
    every = {job.split("/")[-1]: seconds["median"] for job, seconds in timed.items()}
    row = {"name": name, "variant": variant, "seconds": timed[best], "gap": gaps[best]}
    return row | ({"by_size": every} if len(every) > 1 else {})


def judge_rows(found: Record) -> Rows:
    """A row a contender."""
    timed = [row for row in found["rows"] if "seconds" in row]
    ours = next((row["seconds"]["median"] for row in timed if row["name"] == OURS), None)
    responses = found["shape"]["prompts"] * found["shape"]["responses"]
    cells = [
        [
            f"{row['name']}, {row['variant']}",
            spread(row["seconds"], "s"),
            f"{responses / row['seconds']['median']:.1f}",
            f"{row['seconds']['median'] / ours:.2f} ×" if ours else "",
            f"{row['gap']:.1e}",
        ]
        for row in timed
    ]
    return ["contender", "s (quartiles)", "responses/s", "time", "from one at a time"], cells


def about(found: Record) -> str:
    """What was judged."""
    shape = found["shape"]
    return (
        f"{shape['prompts']} prompts × {shape['responses']} responses judged by {found['model']} "
        f"with a reward head, {shape['dtype']}: {shape['tokens']} tokens, of which "
        f"{shape['distinct_tokens']} with each prompt counted once"
    )


def show(found: Record) -> None:
    """Print the table."""
    terminal.table(f"{about(found)}; {device_text(found)}", judge_rows(found))
    terminal.refused(found)


def markdown(found: Record, tokens: int) -> str:
    """The table as a section of a document."""
    return section(found, f"{about(found)}.", judge_rows(found))


BENCH = Bench(
    verb="judge",
    help="judging by a reward model: packed and shared against padded batches",
    add_options=add_options,
    run=run,
    records=("judge",),
    show=show,
    markdown=markdown,
    in_all=(Call("cpu", 6, "--repeat 1 --sizes 4 16"),),
)
