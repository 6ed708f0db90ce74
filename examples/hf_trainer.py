"""A prox loss in Hugging Face's `Trainer`: a `compute_loss` and a collator.

Rows have `input_ids` and `mask` (1 at the answer's tokens) of the chosen and of the rejected
sequence, and their log-probs under the reference, computed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer

from comal_kernels import pack_responses, prox_loss
from comal_kernels.integrations.transformers import LMHead


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """The chosen sequences, then the rejected ones, padded on the right."""
    sides = [row[side] for side in ("chosen", "rejected") for row in rows]
    ids, mask = (
        pad_sequence([torch.tensor(side[name]) for side in sides], batch_first=True)
        for name in ("input_ids", "mask")
    )
    lengths = torch.tensor([len(side["input_ids"]) for side in sides])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "mask": mask,
        "ref_logp": torch.tensor([side["ref_logp"] for side in sides]),
    }


class ProxTrainer(Trainer):
    """`Trainer(…, data_collator=collate)` with `loss` and its hyperparameters: dpo, ipo, …"""

    def __init__(self, *args: Any, loss: str = "dpo", hyper: dict[str, float], **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.loss, self.hyper = loss, hyper
        LMHead.from_model(self.model)  # refuses what it can't reproduce, before training
        self.model_accepts_loss_kwargs = False  # a mean over pairs: Trainer averages over passes

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        states = model(  # as a whole: DDP and FSDP see their module called
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states[-1]
        hidden, target, cu_seqlens = pack_responses(states, inputs["mask"], inputs["input_ids"])
        head = LMHead.from_model(self.accelerator.unwrap_model(model), check=False)
        pairs = len(inputs["input_ids"]) // 2
        out = prox_loss(
            hidden,
            target=target,
            cu_seqlens=cu_seqlens,
            loss=self.loss,
            chosen=torch.arange(pairs),
            rejected=torch.arange(pairs, 2 * pairs),
            ref_logp=inputs["ref_logp"],
            **head.arguments(),
            **self.hyper,
        )
        return (out.loss, out) if return_outputs else out.loss
