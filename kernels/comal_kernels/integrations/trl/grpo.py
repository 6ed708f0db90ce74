"""TRL's GRPOTrainer and RLOOTrainer on this library's log-probs and entropies."""

from __future__ import annotations

from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from comal_kernels.checks import refuse
from comal_kernels.integrations.transformers import LMHead, plain


def fuse_grpo(trainer: Any, *, backend: str = "auto") -> Any:
    """The trainer, whose models' log-probs and entropies are `linear_logprob`'s from now on.

    trainer: a GRPOTrainer or RLOOTrainer that has not begun to train. Prompts and padding are not
    projected; gradients of heads come in float32 sums. Generation is as before.

    Raises ValueError for a trainer without TRL's fused head, a model with a loss of its experts'
    loads, which belongs to TRL's, and a head that is not reproduced.
    """
    temperature: Any = getattr(trainer, "temperature", None)
    if temperature is None:
        refuse("trainer", f"a {type(trainer).__name__}", "a GRPOTrainer or RLOOTrainer")
    if getattr(trainer, "aux_loss_enabled", False):
        refuse("router_aux_loss_coef", "a loss of experts' loads is not added", "0.0")
    wide = bool(getattr(trainer.args, "cast_lm_head_to_fp32", False))
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            inside = plain(trainer.accelerator.unwrap_model(model))
            # a reference may be sharded already: the same head by its class
            LMHead.from_model(inside, check=model is trainer.model)
            _patch(inside, float(temperature), wide, backend)
    return trainer


def _patch(model: Any, temperature: float, wide: bool, backend: str) -> None:
    before = model.forward

    @wraps(before)  # `generate` checks its arguments against the signature
    def forward(
        self: Any,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        if not fused_lm_head:
            given = {"labels": labels, "shift_labels": shift_labels}
            return before(*args, **{k: x for k, x in given.items() if x is not None}, **inputs)
        count = inputs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **{**inputs, "use_cache": False}).last_hidden_state
        if shift_labels is None:
            assert labels is not None
            hidden, shift_labels = hidden[:, :-1], labels[:, 1:]
        head, mask = LMHead.from_model(self, check=False), shift_labels != -100
        found = head.logprob(
            hidden.float() if wide else hidden,
            shift_labels,
            temperature=temperature,
            outputs=("logp", "entropy"),
            backend=backend,
        )
        loss = -found.logp.sum() / (mask.sum().clamp(min=1) if count is None else count)
        return FusedCausalLMOutput(
            loss=loss, log_probs=found.logp, entropy=found.entropy, label_mask=mask
        )

    model.forward = MethodType(forward, model)
