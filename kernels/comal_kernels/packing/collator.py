"""Batches of pairs, as one packed row or padded: the chosen responses, then the rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from comal_kernels.checks import refuse
from comal_kernels.packing.sequences import PromptResponse, pack

SIDES = ("chosen", "rejected")
# argument of prox_loss → columns of a row, one a side
COLUMNS = {
    "ref_logp": tuple(f"ref_{side}_logps" for side in SIDES),
    "last_logp": tuple(f"last_{side}_logps" for side in SIDES),
    "reward": tuple(f"{side}_reward" for side in SIDES),
    "preference": tuple(f"{side}_preference" for side in SIDES),
}
PAIR = "preference"


@dataclass
class PreferenceCollator:
    """Rows of `prompt_ids`, `chosen_ids`, `rejected_ids` → a batch of 2 B responses.

    packing: one row (`packed`), prompts shared if `share`; else `input_ids`, `attention_mask` and
    `completion_mask` (2 B, L), padded on the right with `pad_token_id`.
    max_length: of prompt and response together, cut at the end (`keep_start`) or the beginning.
    Columns of COLUMNS that the rows have come along as (2 B,), PAIR as `pair_preference` (B,).
    """

    pad_token_id: int = 0
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    packing: bool = True
    share: bool = True
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch. Raises ValueError for a row without a token to predict from."""
        some = [self._cut(row["prompt_ids"], row[f"{s}_ids"]) for s in SIDES for row in rows]
        numbers: dict[Any, int] = {}
        batch: dict[str, Any] = {
            "pairs": torch.arange(len(rows)),  # first: a Trainer reads the batch's size off it
            "group": torch.tensor([numbers.setdefault(s.prompt, len(numbers)) for s in some]),
            "tokens": torch.tensor(sum(map(len, some))),
        }
        batch |= {"packed": pack(some, share=self.share)} if self.packing else self._padded(some)
        for argument, columns in COLUMNS.items():
            if columns[0] in rows[0]:
                values = [row[column] for column in columns for row in rows]
                batch[argument] = torch.tensor(values, dtype=torch.float32)
        if PAIR in rows[0]:
            batch["pair_preference"] = torch.tensor([row[PAIR] for row in rows]).float()
        return batch

    def _cut(self, prompt: Sequence[int], response: Sequence[int]) -> PromptResponse:
        whole = [*prompt, *response]
        start, end = 0, len(whole)
        if self.max_length is not None and end > self.max_length:
            if self.truncation_mode == "keep_end":
                start = end - self.max_length
            else:
                end = self.max_length
        # nothing predicts a sequence's first token, so it counts as prompt
        first = min(max(len(prompt), start + 1), end)
        if end <= start:
            refuse("rows", "an empty prompt with an empty response", "at least one token")
        return PromptResponse(whole[start:first], whole[first:end])

    def _padded(self, sequences: Sequence[PromptResponse]) -> dict[str, Tensor]:
        def fill(rows: list[list[int]], value: int) -> Tensor:
            x = pad_sequence([torch.tensor(r) for r in rows], True, value)
            multiple = self.pad_to_multiple_of or 1
            return torch.nn.functional.pad(x, (0, -x.shape[1] % multiple), value=value)

        return {
            "input_ids": fill(
                [[*s.prompt_ids, *s.response_ids] for s in sequences], self.pad_token_id
            ),
            "attention_mask": fill([[1] * len(s) for s in sequences], 0),
            "completion_mask": fill(
                [[0] * len(s.prompt_ids) + [1] * len(s.response_ids) for s in sequences], 0
            ),
        }
