"""The loop of COMAL's authors, from its description: one padded batch, log-softmax over all of it.

Prompts are repeated, padding and prompt positions are projected too, and nothing is fused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.trainers.base import LEARNING_RATE, MAX_GRAD_NORM, Task, Turn


def train(task: Task, turn: Turn) -> None:
    """Take steps: padded forward, float32 log-softmax, gather, DPO, AdamW."""
    model, pairs, device = task.model, task.pairs, task.model.device
    model.train()
    if task.mode.recompute == "all":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    count = len(pairs)
    while True:
        turn.wait()
        total = 0.0
        for start in range(0, count, task.mode.micro_pairs):
            some = slice(start, min(start + task.mode.micro_pairs, count))
            ids, attended, labels = _pad(
                pairs.prompts[some] * 2, pairs.chosen[some] + pairs.rejected[some], device
            )
            ref = torch.tensor(pairs.ref_chosen[some] + pairs.ref_rejected[some], device=device)
            logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, :-1]
            logps = torch.log_softmax(logits.float(), dim=-1)
            words = labels[:, 1:]
            picked = logps.gather(-1, words.clamp(min=0)[..., None])[..., 0]
            reward = (picked * (words >= 0)).sum(1) - ref
            chosen, rejected = reward.chunk(2)
            loss = -torch.nn.functional.logsigmoid(pairs.beta * (chosen - rejected)).sum() / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turn.done(total, float(norm))


def _pad(
    prompts: list[list[int]], responses: list[list[int]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:  # (B, L) each: ids, attention mask, labels (−1: none)
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    attended, labels = torch.zeros_like(ids), torch.full_like(ids, -1)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        end = len(prompt) + len(response)
        ids[i, :end] = torch.tensor(prompt + response)
        attended[i, :end] = 1
        labels[i, len(prompt) : end] = torch.tensor(response)
    return ids.to(device), attended.to(device), labels.to(device)
