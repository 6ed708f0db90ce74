"""DPO on packed rows in a loop of accelerate's; in Lightning, `step` is a `training_step`.

accelerate launch examples/accelerate_loop.py MODEL
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from comal_kernels import prox_loss
from comal_kernels.integrations.transformers import LMHead, accept_objective, packed_attention
from comal_kernels.packing import PreferenceCollator

PAIRS = [("Is the sky blue?", " Yes.", " No, green."), ("2 + 2?", " 4", " 5, or 6")] * 4


def step(model: Any, batch: dict[str, Any]) -> Tensor:
    """The loss of a batch, whose reference log-probs `ref_logp` (2 B,) came with it."""
    packed, pairs = batch["packed"], len(batch["pairs"])

    def objective(states: Tensor, head: LMHead) -> Tensor:
        return prox_loss(
            states,
            target=packed.target,
            cu_seqlens=packed.response_cu_seqlens,
            loss="dpo",
            beta=0.1,
            chosen=torch.arange(pairs),
            rejected=torch.arange(pairs, 2 * pairs),
            ref_logp=batch["ref_logp"],
            **head.arguments(),
        ).loss

    loss: Tensor = model(packed=packed, objective=objective)  # within what DDP and FSDP wrap
    return loss


@torch.no_grad()
def with_reference(model: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The row with its responses' log-probs under the model as it is."""
    packed = PreferenceCollator()([row])["packed"].to(model.device)

    def sums(states: Tensor, head: LMHead) -> Tensor:
        logp: Tensor = head.logprob(states, packed.target, cu_seqlens=packed.response_cu_seqlens)
        return logp

    chosen, rejected = model(packed=packed, objective=sums).tolist()
    return row | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def main(name: str, steps: int = 10, **options: Any) -> list[float]:
    """Losses of the steps."""
    accelerator = Accelerator(**options)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name).to(accelerator.device)
    accept_objective(model)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [{k: tokenizer(t)["input_ids"] for k, t in zip(names, p, strict=True)} for p in PAIRS]
    with packed_attention(model, "auto"):
        rows = [with_reference(model, row) for row in rows]
        loader = DataLoader(rows, batch_size=4, collate_fn=PreferenceCollator())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        losses: list[float] = []
        while len(losses) < steps:
            for batch in loader:
                loss = step(wrapped, batch)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                accelerator.print(f"step {len(losses)}: loss {losses[-1]:.4f}")
    return losses[:steps]


if __name__ == "__main__":
    main(sys.argv[1])
