"""DPO of a transformers model in plain PyTorch: padded batches in, no logits anywhere.

    python examples/plain_torch.py MODEL

A pair is a prompt with two answers. The reference's log-probs are computed once, before training.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from comal_kernels import linear_logprob, pack_responses, prox_loss
from comal_kernels.integrations.transformers import LMHead

PAIRS = [
    ("What is the capital of France?", " Paris.", " I would rather not say."),
    ("Two and two are", " four.", " many things to many people."),
]


def collate(tokenizer: Any, pairs: list[tuple[str, str, str]]) -> dict[str, Tensor]:
    """The chosen sequences, then the rejected ones, padded; `mask` at the answers' tokens."""
    prompts = [tokenizer(p)["input_ids"] for p, _, _ in pairs] * 2
    answers = [w for _, w, _ in pairs] + [r for _, _, r in pairs]
    ends = [tokenizer(a, add_special_tokens=False)["input_ids"] for a in answers]
    ends = [ids + [tokenizer.eos_token_id] for ids in ends]
    longest = max(len(p) + len(e) for p, e in zip(prompts, ends, strict=True))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask, seen = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        size = len(prompt) + len(end)
        ids[row, :size] = torch.tensor(prompt + end)
        seen[row, :size], mask[row, len(prompt) : size] = 1, 1
    return {"input_ids": ids, "attention_mask": seen, "mask": mask}


def responses(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The states that predict the answers, the answers, and where each begins."""
    body = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"])
    return pack_responses(body.last_hidden_state, batch["mask"], batch["input_ids"])


def train(model: Any, batch: dict[str, Tensor], steps: int, learning_rate: float) -> list[float]:
    """The loss of each step."""
    head, count = LMHead.from_model(model), len(batch["input_ids"])
    with torch.no_grad():
        hidden, target, cu_seqlens = responses(model, batch)
        reference = linear_logprob(hidden, target=target, cu_seqlens=cu_seqlens, **head.arguments())
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        hidden, target, cu_seqlens = responses(model, batch)
        out = prox_loss(
            hidden,
            target=target,
            cu_seqlens=cu_seqlens,
            loss="dpo",
            beta=0.1,
            chosen=torch.arange(count // 2),
            rejected=torch.arange(count // 2, count),
            ref_logp=reference,
            **head.arguments(),
        )
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    return losses


if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    for step, loss in enumerate(train(model, collate(tokenizer, PAIRS), 10, 1e-5), 1):
        print(f"step {step}: loss {loss:.4f}")
