"""The log-prob functions of OpenRLHF and verl, with their signatures, from hidden states.

verl: put `FusedLinearForPPO` and `linear_cross_entropy` in the place of those of the same names in
verl/utils/experimental/torch_functional.py and verl/utils/kernel/. OpenRLHF: its Actor calls
`log_probs_from_logits(output["logits"], labels, temperature)`; let its model give states for logits
(`model.set_output_embeddings(torch.nn.Identity())`) and `log_probs_from_states(head)` for the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from comal_kernels import linear_logprob
from comal_kernels.integrations.transformers import LMHead

BOTH = ("logp", "entropy")


class FusedLinearForPPO(nn.Module):
    """verl's module: log-probs and entropies of (T, H) or (B, L, H) states, both with gradients."""

    def __init__(self, chunk_size: int = 512) -> None:
        super().__init__()
        self.chunk_size = chunk_size  # rows of logits at a time, as verl has it

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out = linear_logprob(
            hidden_states, vocab_weights, input_ids, temperature=temperature, outputs=BOTH,
            workspace=4 * self.chunk_size * len(vocab_weights),
        )  # fmt: skip
        return out.logp, out.entropy


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float = 1.0,
    reduction: str = "none", dist_process_group: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """verl's function; with a group, `weight` is this rank's part of the words."""
    out = linear_logprob(
        hidden, weight, labels, temperature=temperature, outputs=BOTH, group=dist_process_group
    )
    logp = {"none": out.logp, "sum": out.logp.sum(), "mean": out.logp.mean()}[reduction]
    return logp, out.entropy


def log_probs_from_states(head: LMHead) -> Callable[..., Tensor]:
    """OpenRLHF's `log_probs_from_logits`, of states; `head` was taken before it was replaced."""

    def log_probs_from_logits(states: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        logp: Tensor = head.logprob(states, labels, temperature=temperature)
        return logp

    return log_probs_from_logits
