"""The decode loop: responses that have ended leave, waiting prompts enter.

A prompt goes through the model once; its responses are decoded together and read its keys and
values together. Nothing depends on who else is decoded but the rounding of products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comal_fast.config.generation import TransformersConfig
from comal_fast.errors import InputError
from comal_fast.generation.draw import NOT_A_TOKEN, draw, uniforms
from comal_fast.generation.engine import Response
from comal_fast.generation.slots import Slots, decoding
from comal_fast.model.head import head_arguments
from comal_kernels.integrations.transformers import refuse_moving_rope
from comal_kernels.packing import pack_prompts
from comal_kernels.transfer import to_device

PREFILL_TOKENS = 8192  # of prompts that go through the model together
ROUND = (16, 128)  # tokens by which what is read of a memory grows; on a GPU, a graph for each
UNREAD_STEPS = 8  # that a GPU takes before the host looks who has ended


class Decoder:
    """Decodes `count` responses to each of some prompts, at most `rows` at a time."""

    def __init__(
        self,
        model: Any,
        options: TransformersConfig,
        stops: Sequence[int],
        seed: str,
        prompts: Sequence[Sequence[int]],
        count: int,
    ) -> None:
        self.model, self.options, self.seed, self.count = model, options, seed, count
        self.prompts, self.device = prompts, model.device
        self.waiting = sorted(
            range(len(prompts)), key=lambda i: (len(prompts[i]), -i)
        )  # last first
        groups = max(1, options.batch_size // count)
        self.groups = min(groups, len(prompts))
        self.longest = max(map(len, prompts))
        self.new = options.max_new_tokens
        self.stops = torch.tensor(stops, device=self.device)
        self.slots = Slots(model, self.groups, count, self.longest, self.new)
        slots = self.groups * count
        self.tokens = torch.zeros(slots, dtype=torch.int64, device=self.device)  # the newest
        self.drawn = torch.zeros(slots, self.new, dtype=torch.float64, device=self.device)
        self.told = torch.zeros(slots, self.new, dtype=torch.int64, device=self.device)
        self.prompt_of: list[int | None] = [None] * self.groups
        self.alive = np.zeros(slots, bool)
        self.length = np.zeros(slots, np.int64)  # tokens drawn so far
        self.head = head_arguments(model)
        self.graphs: dict[tuple[int, int], Any] = {}  # by what is read of prompts and responses
        self.pool: Any = None  # memory that the graphs share
        refuse_moving_rope(model, self.longest + self.new)

    def run(self) -> Iterator[dict[int, list[Response]]]:
        """Yield {prompt index: its responses} as they end.

        Between two of them the model is as it was, and so is the mode of autograd.
        """
        while self.waiting or self.alive.any():
            with decoding(self.model), torch.inference_mode():
                self._enter()
                if self.alive.any():
                    self._steps()
                ended = list(self._leave())
            yield from ended

    def _enter(self) -> None:
        """Let waiting prompts into the groups that are free."""
        free = [g for g, prompt in enumerate(self.prompt_of) if prompt is None]
        while free and self.waiting:
            entering: list[int] = []
            tokens = 0
            while free[len(entering) :] and self.waiting:
                size = len(self.prompts[self.waiting[-1]])
                if entering and tokens + size > PREFILL_TOKENS:
                    break
                entering.append(self.waiting.pop())
                tokens += size
            self._fill(free[: len(entering)], entering)
            free = free[len(entering) :]

    def _fill(self, groups: list[int], numbers: list[int]) -> None:
        ids, positions, layout, last = pack_prompts([self.prompts[i] for i in numbers], self.device)
        self.slots.fill(groups, layout)
        output = self.model.base_model(
            input_ids=ids, position_ids=positions, use_cache=False, slots=self.slots
        )
        logits = self._logits(output.last_hidden_state[0].index_select(0, last))
        slots = [g * self.count + m for g in groups for m in range(self.count)]
        for group, number in zip(groups, numbers, strict=True):
            self.prompt_of[group] = number
        at = to_device(np.array(slots), self.device)
        drawn = torch.stack(
            [
                uniforms(self.seed, self.prompts[i], sample, self.new)
                for i in numbers
                for sample in range(self.count)
            ]
        )
        self.drawn[at] = to_device(drawn, self.device)
        self.slots.taken[at] = 0
        self.alive[slots], self.length[slots] = True, 0
        self._take(at, logits.repeat_interleave(self.count, 0))
        self._note(slots, 1)

    def _steps(self) -> None:
        """Draw the next token of every slot that is alive, or on a GPU the next few."""
        lively = np.flatnonzero(self.alive)
        dense = self.device.type != "cpu" or len(lively) == len(self.alive)
        rows = None if dense else torch.from_numpy(lively)
        left = self.new - int(self.length[lively].max())
        steps = min(left, UNREAD_STEPS) if self.device.type != "cpu" else 1
        for step in range(steps):
            self._step(rows, int(self.length[lively].max()) + step)
        self._note(lively, steps)

    def _step(self, rows: Tensor | None, held: int) -> None:
        prompt = max(len(self.prompts[p]) for p in self.prompt_of if p is not None)
        every = ROUND[self.device.type == "cuda"]
        seen = _rounded(prompt, self.longest, every), _rounded(held, self.new, every)
        if self.device.type != "cuda":
            self._pass(rows, *seen)
        elif seen not in self.graphs:  # once as it is: what it needs is made, and kernels compiled
            self._pass(rows, *seen)
            self.graphs[seen] = None
        else:
            graph = self.graphs[seen]
            if graph is None:
                graph = self.graphs[seen] = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    self._pass(rows, *seen)
                self.pool = graph.pool()
            graph.replay()

    def _pass(self, rows: Tensor | None, prompt: int, response: int) -> None:
        self.slots.step(rows, prompt, response)
        tokens = self.tokens if rows is None else self.tokens[rows]
        output = self.model.base_model(
            input_ids=tokens[:, None],
            position_ids=self.slots.positions(rows)[:, None],
            use_cache=False,
            slots=self.slots,
        )
        at = torch.arange(len(self.tokens), device=self.device) if rows is None else rows
        self.slots.taken[at] += 1
        self._take(at, self._logits(output.last_hidden_state[:, 0]))

    def _take(self, at: Tensor, logits: Tensor) -> None:
        """Draw the tokens of slots `at` (B,) from logits (B, V)."""
        place = self.slots.taken[at].clamp(max=self.new - 1)
        drawn = self.drawn[at, place]
        tokens = draw(logits, drawn, self.options.temperature, self.options.top_p)
        self.told[at, place] = tokens
        self.tokens[at] = tokens.clamp(min=0)

    def _logits(self, states: Tensor) -> Tensor:  # (B, H) → (B, V)
        head = self.head
        logits = F.linear(states, head["weight"], head["bias"])
        logits = logits.float() * head["logit_scale"]
        cap = head["softcap"]
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _note(self, slots: Sequence[int] | np.ndarray, steps: int) -> None:
        """See which of `slots` have ended in the last `steps` tokens."""
        at = torch.as_tensor(slots, device=self.device)
        start = torch.from_numpy(self.length[slots]).to(self.device)
        places = start[:, None] + torch.arange(steps, device=self.device)
        new = self.told[at[:, None], places]
        ended = torch.isin(new, self.stops)
        codes = torch.where(ended, 1, 0) + torch.where(new == NOT_A_TOKEN, 2, 0)
        for slot, row in zip(slots, codes.tolist(), strict=True):
            if 2 in row:
                raise InputError(
                    "model: its logits hold NaN or infinity, so that nothing can be sampled; "
                    "a run in float32 tells whether its weights do"
                )
            over = row.index(1) + 1 if 1 in row else steps
            self.length[slot] += over
            if 1 in row or self.length[slot] == self.new:
                self.alive[slot] = False

    def _leave(self) -> Iterator[dict[int, list[Response]]]:
        """Hand out what the groups hold whose responses have all ended, and free them."""
        for group, number in enumerate(self.prompt_of):
            slots = slice(group * self.count, (group + 1) * self.count)
            if number is None or self.alive[slots].any():
                continue
            told, lengths = self.told[slots].tolist(), self.length[slots]
            stops = set(self.stops.tolist())
            responses = [row[:n] for row, n in zip(told, lengths, strict=True)]
            self.prompt_of[group] = None
            yield {number: [Response(ids, ids[-1] in stops) for ids in responses]}


def _rounded(tokens: int, most: int, every: int) -> int:
    return min(most, -(-tokens // every) * every)
