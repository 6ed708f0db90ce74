"""Attention of decoding: a prompt's keys and values are held and read once for all its responses.

Neither padding nor the unfilled rest of the memory is read, and keys are not repeated for the query
heads that share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from comal_fast.model.packed import as_input_errors
from comal_kernels.attention.layout import Engine, Layout, Options
from comal_kernels.integrations.transformers.attention import CALLS, asked, choose_engine, refuse
from comal_kernels.transfer import to_devices

NAME = "comal_decode"  # in transformers


class Slots:
    """Keys and values of `groups` prompts and of `members` responses to each.

    Response m of group g is slot g · members + m. A prompt has at most `prompt` tokens here, a
    response `response`. Calls of the model between `fill` or `step` and the next one are theirs.
    """

    def __init__(self, model: Any, groups: int, members: int, prompt: int, response: int) -> None:
        self.groups, self.members, self.device = groups, members, model.device
        self.within = within_prompts(model)
        self.prompt, self.response = prompt, response
        self.lengths = torch.zeros(
            groups, dtype=torch.int64, device=self.device
        )  # tokens of prompts
        self.taken = torch.zeros(groups * members, dtype=torch.int64, device=self.device)
        self.memory: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}  # by layer
        self.layout: Layout | None = None

    def fill(self, groups: Sequence[int], layout: Layout) -> None:
        """Begin a pass over prompts, segments of `layout`, which become these groups'."""
        self.layout, self.filled = layout, list(groups)
        sizes = [segment.queries for segment in layout.segments]
        lists = [torch.tensor(x) for x in (self.filled, sizes)]
        at, lengths = to_devices(lists, self.device)
        self.lengths[at] = lengths

    def step(self, rows: Tensor | None, prompt: int, response: int) -> None:
        """Begin a pass over one token of each of `rows` (B,) slots, or of every slot.

        `taken` (slots,): the tokens of its response that a slot holds already. No prompt is longer
        than `prompt`, and no response than `response`, the new token included.
        """
        self.layout, self.rows = None, rows
        self.seen = (prompt, response)
        self.masks: dict[int | None, Tensor] = {}  # by window

    def positions(self, rows: Tensor | None) -> Tensor:  # (B,)
        """Of the token that a step adds to each of `rows`."""
        every = self.lengths.repeat_interleave(self.members) + self.taken
        return every if rows is None else every[rows]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: Options
    ) -> Tensor:
        """query (B, heads, 1, D), key and value (B, kv_heads, 1, D) → (B, 1, heads, D)."""
        slots, groups, members = self.groups * self.members, self.groups, self.members
        kv_heads, width = key.shape[1], query.shape[-1]
        shared = query.shape[1] // kv_heads
        keys, values, own_keys, own_values = self._memory(layer, key, value)
        rows = torch.arange(slots, device=self.device) if self.rows is None else self.rows
        at = self.taken[rows].clamp(max=self.response - 1)
        own_keys[rows, :, at] = key[:, :, 0]
        own_values[rows, :, at] = value[:, :, 0]
        q = query.view(-1, kv_heads, shared, width) * options.scale
        if self.rows is not None and len(self.rows) < slots:
            q = q.new_zeros(slots, kv_heads, shared, width).index_copy_(0, rows, q)
        prompt, response = self.seen
        # (groups, kv_heads, members · shared, D): one product reads a prompt's keys for all
        together = q.view(groups, members, kv_heads, shared, width).transpose(1, 2)
        together = together.reshape(groups, kv_heads, members * shared, width)
        shape = (groups, kv_heads, members, shared)
        first = _product(together, keys[:, :, :prompt].mT).view(*shape, prompt)
        second = _product(q, own_keys[:, :, :response].mT)
        second = second.view(groups, members, kv_heads, shared, response).transpose(1, 2)
        logits = torch.cat([first, second], -1)
        if options.softcap is not None:
            logits = options.softcap * torch.tanh(logits / options.softcap)
        if options.window not in self.masks:
            self.masks[options.window] = self._mask(options.window)
        shares = (logits + self.masks[options.window]).softmax(-1).to(query.dtype)
        first, second = shares.split([prompt, response], -1)
        out = first.reshape(groups, kv_heads, members * shared, prompt) @ values[:, :, :prompt]
        second = second.transpose(1, 2).reshape(slots, kv_heads, shared, response)
        own = (second @ own_values[:, :, :response]).view(groups, members, kv_heads, shared, -1)
        whole = out.view(*shape, -1).transpose(1, 2) + own
        whole = whole.reshape(slots, 1, kv_heads * shared, -1)
        return whole if len(rows) == slots else whole.index_select(0, rows)

    def _mask(self, window: int | None) -> Tensor:
        """(groups, 1, members, 1, prompt + response): 0 where a token is seen, −∞ elsewhere."""
        prompt, response = (torch.arange(n, device=self.device) for n in self.seen)
        lengths = self.lengths[:, None, None]
        taken = self.taken.view(self.groups, self.members, 1)
        before = (prompt >= lengths).expand(self.groups, self.members, -1)  # hidden
        own = response > taken
        if window is not None:
            before = before | (prompt <= lengths + taken - window)
            own = own | (response <= taken - window)
        hidden = torch.cat([before, own], -1)[:, None, :, None]
        return torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, -torch.inf)

    def keep(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Hold key and value (1, kv_heads, T, D) of a pass over prompts."""
        assert self.layout is not None
        keys, values, _, _ = self._memory(layer, key, value)
        for group, segment in zip(self.filled, self.layout.segments, strict=True):
            at = slice(segment.start, segment.stop)
            keys[group, :, : segment.queries] = key[0, :, at]
            values[group, :, : segment.queries] = value[0, :, at]

    def _memory(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if layer not in self.memory:  # zeros: what is hidden is multiplied by 0, and must be finite
            self.memory[layer] = (
                key.new_zeros(self.groups, key.shape[1], self.prompt, key.shape[-1]),
                value.new_zeros(self.groups, value.shape[1], self.prompt, value.shape[-1]),
                key.new_zeros(
                    self.groups * self.members, key.shape[1], self.response, key.shape[-1]
                ),
                value.new_zeros(
                    self.groups * self.members, value.shape[1], self.response, value.shape[-1]
                ),
            )
        return self.memory[layer]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (…, n, d) b (…, d, m) in float32, never rounded to halves on a GPU."""
    if a.dtype == torch.float32:
        return a @ b
    if not a.is_cuda:
        return a.float() @ b.float()
    flat = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    return flat.view(*a.shape[:2], *flat.shape[-2:])


@contextmanager
def decoding(model: Any) -> Iterator[None]:
    """Within the block, calls of `model` take `slots=Slots(…)`.

    Raises InputError where the model's attention can't be done exactly.
    """
    with as_input_errors():
        refuse(model)
        before = model.config._attn_implementation
        model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            model.set_attn_implementation(before)


def within_prompts(model: Any) -> Engine:
    """What attends within the prompts of `model`."""
    engine = choose_engine("auto", model)
    # prompts come in ever new lengths, and flex compiles for each
    return CALLS["sdpa" if engine == "flex_attention" else engine]


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    slots: Slots,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    options = asked(module, query, scaling, 0.0, kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    if slots.layout is None:
        return slots.attend(layer, query, key, value, options), None
    slots.keep(layer, key, value)
    return slots.within(query, key, value, slots.layout, options), None


AttentionInterface.register(NAME, _attention)
