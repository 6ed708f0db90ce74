"""Packing: many responses in one row, every distinct prompt once, nobody seeing a neighbour.

A prompt is followed by its responses. Each of them continues at its prompt's end, in positions and
in what it sees, as if the others were not there. A response's last token predicts nothing that is
asked for, so it is left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from comal_kernels.attention.layout import Layout, Segment
from comal_kernels.transfer import to_devices


@dataclass(frozen=True)
class PromptResponse:
    """A prompt and one response to it, as token ids."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    @property
    def prompt(self) -> Hashable:
        """What tells prompts apart: those of one value are run once."""
        return tuple(self.prompt_ids)

    @property
    def inputs(self) -> Sequence[int]:
        """The response's tokens that go through the model."""
        return self.response_ids[:-1]


@dataclass(frozen=True)
class Packed:
    """S responses in one row of T tokens.

    `predictors`: the positions whose next token is a response token, response by response; a
    prompt's last position predicts the first token of each of its responses.
    """

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T)
    layout: Layout
    predictors: Tensor  # (N,)
    target: Tensor  # (N,) int64, on the host: the head plans from it, and would wait for it
    response_cu_seqlens: Tensor  # (S + 1,) int32, on the CPU

    @property
    def tokens(self) -> int:
        """T, what goes through the model."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Packed:
        """The same for a model on `device`; what the host plans from stays there."""
        device = torch.device(device)
        move = partial(Tensor.to, device=device, non_blocking=non_blocking)
        return replace(
            self,
            input_ids=move(self.input_ids),
            position_ids=move(self.position_ids),
            predictors=move(self.predictors),
            layout=Layout(self.layout.segments, device),
        )

    def pin_memory(self) -> Packed:
        """The same in memory from which a GPU copies without a wait."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            predictors=self.predictors.pin_memory(),
        )


def pack(
    sequences: Sequence[PromptResponse], device: torch.device | str = "cpu", *, share: bool = True
) -> Packed:
    """Put the sequences into one row. Every prompt has at least one token.

    share: a prompt that several of them begin with goes through the model once.
    """
    device = torch.device(device)
    members: dict[Hashable, list[int]] = {}
    for number, s in enumerate(sequences):
        members.setdefault(s.prompt if share else number, []).append(number)
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    predictors: list[list[int]] = [[] for _ in sequences]
    for numbers in members.values():
        prompt = sequences[numbers[0]].prompt_ids
        first, start = len(ids), len(ids)  # of the prompt; of the segment
        ids += prompt
        positions += range(len(prompt))
        end = len(ids)
        for number in numbers:
            inputs = sequences[number].inputs
            if sequences[number].response_ids:
                predictors[number] = [end - 1, *range(len(ids), len(ids) + len(inputs))]
            ids += inputs
            positions += range(len(prompt), len(prompt) + len(inputs))
            # the first response and its prompt are one sequence: no prefix to look up
            prefix = (0, 0) if start == first else (first, end)
            if len(ids) > start:
                segments.append(Segment(start, len(ids), prefix))
            start = len(ids)
    bounds = [0, *accumulate(len(s.response_ids) for s in sequences)]
    target = [token for s in sequences for token in s.response_ids]
    predicting = [p for row in predictors for p in row]
    token, position, predictor = _sent([ids, positions, predicting], device)
    return Packed(
        token[None],
        position[None],
        Layout(segments, device),
        predictor,
        torch.tensor(target, dtype=torch.int64),
        torch.tensor(bounds, dtype=torch.int32),
    )


def _sent(lists: Sequence[Sequence[int]], device: torch.device) -> list[Tensor]:
    return to_devices([torch.tensor(x, dtype=torch.int64) for x in lists], device)


def pack_prompts(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, Layout, Tensor]:
    """ids (1, T), positions (1, T), layout, and the last position of each prompt (P,)."""
    ends = list(accumulate(map(len, prompts)))
    segments = [Segment(end - len(p), end) for p, end in zip(prompts, ends, strict=True)]
    ids = [token for p in prompts for token in p]
    positions = [i for p in prompts for i in range(len(p))]
    token, position, last = _sent([ids, positions, [end - 1 for end in ends]], device)
    return token[None], position[None], Layout(segments, device), last
