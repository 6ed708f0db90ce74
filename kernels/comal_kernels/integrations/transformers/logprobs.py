"""A model that gives log-probs of its labels in place of logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from comal_kernels.integrations.transformers.head import LMHead, plain
from comal_kernels.linear_logprob.api import LogprobOutput


class FusedLogprobs(nn.Module):
    """A causal language model whose forward gives log-probs of `labels` instead of logits."""

    def __init__(
        self, model: Any, outputs: Sequence[str], k: int, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model, self.outputs, self.k, self.options = model, tuple(outputs), k, dict(options)
        LMHead.from_model(model)  # says what is wrong before anything runs

    def forward(self, *args: Any, labels: Tensor, **inputs: Any) -> LogprobOutput:
        """labels (B, L), as transformers' models take them: −100 where nothing counts, not shifted.

        Returns outputs (B, L − 1): entry t is of the prediction of labels[:, t + 1]. What the model
        would do with its logits (`logits_to_keep`, a loss of its own) is left out.
        """
        body = plain(self.model).base_model
        hidden = body(*args, **inputs).last_hidden_state[:, :-1]
        head = LMHead.from_model(self.model, check=False)  # its tensors may have been replaced
        found: LogprobOutput = head.logprob(
            hidden, labels[:, 1:], outputs=self.outputs, k=self.k, **self.options
        )
        return found


def with_fused_logprobs(
    model: Any, outputs: Sequence[str] = ("logp",), *, k: int = 1, **options: Any
) -> FusedLogprobs:
    """The model, called with `labels`, gives `outputs` of `linear_logprob` and never holds logits.

    Its parameters are the model's own. `options`: of `linear_logprob`, such as temperature,
    reduction, backend. Raises ValueError as `LMHead.from_model` does.
    """
    return FusedLogprobs(model, outputs, k, options)
