"""The pairs of `bench step`: token ids that every trainer gets alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.models import MODELS, SMOLLM2, load_smollm2_tokenizer, prompt_text_ids

SPREAD = 0.7  # σ of the log-normal response lengths; 0.94 in HH-RLHF's harmless pairs
NOISE = 3.0  # nats between the policy's log-probs and the cached reference's

Ids = list[int]


@dataclass(frozen=True)
class Pairs:
    """One optimiser step's preference pairs, with cached reference log-probs."""

    prompts: list[Ids]
    chosen: list[Ids]
    rejected: list[Ids]
    ref_chosen: list[float]
    ref_rejected: list[float]
    beta: float = 0.1

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sequences(self) -> list[tuple[Ids, Ids]]:
        """Prompt and response: the chosen, then the rejected."""
        return list(zip(self.prompts * 2, self.chosen + self.rejected, strict=True))

    @property
    def lengths(self) -> list[int]:
        """Tokens that each sequence adds: the first of a prompt's brings the prompt."""
        seen: set[tuple[int, ...]] = set()
        found = []
        for prompt, response in self.sequences:
            found.append(len(response) + (0 if tuple(prompt) in seen else len(prompt)))
            seen.add(tuple(prompt))
        return found

    @property
    def distinct_tokens(self) -> int:
        """Tokens of each prompt and each response once: what there is to learn from."""
        return sum(self.lengths)

    @property
    def response_tokens(self) -> int:
        """Tokens of all responses: what the head must see."""
        return sum(len(ids) for column in (self.chosen, self.rejected) for ids in column)

    @property
    def padded_tokens(self) -> int:
        """Tokens of one padded batch of all, prompts repeated."""
        lengths = [len(p) + len(r) for p, r in self.sequences]
        return len(lengths) * max(lengths)

    def with_reference(self, logps: list[float]) -> Pairs:
        """The same pairs with reference log-probs near `logps` (chosen, then rejected)."""
        # at equal log-probs the loss would just be log 2
        noise = np.random.default_rng(0).normal(0, NOISE, len(logps))
        ref = (np.array(logps) + noise).tolist()
        return replace(self, ref_chosen=ref[: len(self)], ref_rejected=ref[len(self) :])


def make_pairs(
    model: str, count: int, median: int, longest: int, share: int = 1, prompts: str = "builtin"
) -> Pairs:
    """Pairs of text for SmolLM2, of random ids for random weights; reference log-probs of 0.

    `share`: pairs of one prompt; `prompts`: SmolLM2's, as data.prompts.
    """
    if model == SMOLLM2:
        tokenizer = load_smollm2_tokenizer()
        return text_pairs(tokenizer, count, median, longest, share, prompts)
    return random_pairs(MODELS[model].vocab, count, median, longest, share)


def text_pairs(
    tokenizer: Any,
    count: int,
    median: int,
    longest: int,
    share: int = 1,
    prompts_from: str = "builtin",
) -> Pairs:
    """Pairs of real prompts (data.prompts) and human-written responses, cut at seeded lengths.

    `share`: pairs of one prompt.
    """
    from comal_fast.config.schema import DataConfig
    from comal_fast.data.prompts import load_prompts
    from comal_fast.data.tokenize import tokenize_prompts

    data = DataConfig(prompts=prompts_from)
    prompts, _, _ = tokenize_prompts(load_prompts(data)[:count], tokenizer, data, 1)
    repeated = [prompts[i // share % len(prompts)].ids for i in range(count)]
    text = prompt_text_ids(tokenizer, 2 * count, longest).tolist()
    return _cut(repeated, text, median)


def random_pairs(vocab: int, count: int, median: int, longest: int, share: int = 1) -> Pairs:
    """Pairs of random ids, for models with random weights; prompts half as long as responses.

    `share`: pairs of one prompt.
    """
    rng = np.random.default_rng(1)
    sizes = _lengths(rng, count, max(2, median // 2), longest)
    prompts = [rng.integers(0, vocab, n).tolist() for n in sizes]
    prompts = [prompts[i // share] for i in range(count)]
    return _cut(prompts, rng.integers(0, vocab, (2 * count, longest)).tolist(), median)


def _cut(prompts: list[Ids], text: list[Ids], median: int) -> Pairs:
    count = len(prompts)
    lengths = _lengths(np.random.default_rng(0), 2 * count, median, len(text[0]))
    responses = [row[:n] for row, n in zip(text, lengths, strict=True)]
    return Pairs(prompts, responses[:count], responses[count:], [0.0] * count, [0.0] * count)


def _lengths(rng: np.random.Generator, count: int, median: int, longest: int) -> list[int]:
    return (
        np.clip(rng.lognormal(np.log(median), SPREAD, count).round(), 2, longest)
        .astype(int)
        .tolist()
    )


@torch.no_grad()
def plain_logps(model: Any, pairs: Pairs) -> list[float]:
    """Summed log-probs of each response (chosen, then rejected), one at a time in plain torch."""
    found = []
    for prompts, responses in ((pairs.prompts, pairs.chosen), (pairs.prompts, pairs.rejected)):
        for prompt, response in zip(prompts, responses, strict=True):
            ids = torch.tensor([prompt + response], device=model.device)
            logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            target = torch.tensor(response, device=model.device)
            found.append(-float(torch.nn.functional.cross_entropy(logits, target, reduction="sum")))
    return found
