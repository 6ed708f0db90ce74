"""`generation.engine: transformers`: sampling in this process, every prompt prefilled once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    StaticCache,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import StaticLayer

from comal_fast.config.generation import TransformersConfig
from comal_fast.generation.engine import Engine, Response, Sampled
from comal_fast.model.load import stop_token_ids


class TransformersEngine:
    """Batches of prompts, longest first; each prompt is prefilled once for all its responses.

    Every batch seeds itself from the seed and its number, so the outcome depends on nothing before.
    """

    def __init__(self, options: TransformersConfig, model: Any, tokenizer: Any) -> None:
        self.options, self.model, self.tokenizer = options, model, tokenizer

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        seed: str,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[int, list[Response]]]:
        """Yield {prompt index: its `count` responses} by the batch; a part is every n-th batch."""
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        per_batch = max(1, self.options.batch_size // count)
        stops = stop_token_ids(self.model, self.tokenizer)
        starts = list(enumerate(range(0, len(order), per_batch)))
        for number, start in starts[part[0] :: part[1]]:
            chosen = order[start : start + per_batch]
            digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
            with torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(int.from_bytes(digest[:7], "big"))
                batch = [prompts[i] for i in chosen]
                tokens = _generate(self.model, self.tokenizer, batch, count, self.options, stops)
            responses = [_cut(row, stops) for row in tokens.tolist()]
            yield {index: responses[i * count : (i + 1) * count] for i, index in enumerate(chosen)}


def make(options: TransformersConfig, policy: Sampled) -> Engine:
    """The engine, with the policy in this process's memory."""
    return TransformersEngine(options, policy.model(), policy.tokenizer)


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: list[Sequence[int]],
    repeats: int,
    config: TransformersConfig,
    stops: list[int],
) -> Tensor:
    """(len(prompts) · repeats, new tokens) sampled ids, prompts padded on the left."""
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    ids, mask = ids.to(model.device), mask.to(model.device)
    cache = _new_cache(model, longest + config.max_new_tokens)
    if longest > 1:  # all but the last token, which generate() itself wants to see
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
        _repeat(cache, repeats)
    ids, mask = ids.repeat_interleave(repeats, 0), mask.repeat_interleave(repeats, 0)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        do_sample=False,
        logits_processor=_sampler(config),
        disable_compile=True,
        max_new_tokens=config.max_new_tokens,
        eos_token_id=stops,
        pad_token_id=pad,
    )
    return output[:, longest:]


def _new_cache(model: Any, length: int) -> Cache:
    """An empty cache for `length` tokens, preallocated where every layer is attention.

    A growing one is copied at every token.
    """
    cache = StaticCache(config=model.config, max_cache_len=length)
    if all(isinstance(layer, StaticLayer) for layer in cache.layers):
        return cache
    return DynamicCache(config=model.config)


def _repeat(cache: Cache, repeats: int) -> None:
    if isinstance(cache, DynamicCache):
        cache.batch_repeat_interleave(repeats)
        return
    for layer in cache.layers:
        assert isinstance(layer, StaticLayer) and layer.keys is not None
        assert layer.values is not None
        layer.keys = layer.keys.repeat_interleave(repeats, 0)
        layer.values = layer.values.repeat_interleave(repeats, 0)


def _sampler(config: TransformersConfig) -> LogitsProcessorList:
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(config.temperature)]
    if config.top_p < 1.0:
        steps.append(TopPLogitsWarper(config.top_p))
    return LogitsProcessorList([*steps, Draw()])


class Draw(LogitsProcessor):
    """Draws each row's token, so that generate()'s argmax finds it.

    One uniform number a row and the inverse of the distribution function, in float64; generate()'s
    own draw takes V exponential ones, a fifth of a decoding step of a small model on a CPU.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, V) → (B, V)
        below = scores.float().softmax(-1).cumsum(-1, dtype=torch.float64)
        drawn = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device)
        token = torch.searchsorted(below, drawn * below[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


def _cut(ids: list[int], stops: list[int]) -> Response:
    for position, token in enumerate(ids):
        if token in stops:
            return Response(ids[: position + 1], finished=True)
    return Response(ids, finished=False)
