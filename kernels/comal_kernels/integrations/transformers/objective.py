"""A model whose forward ends in an objective of its states and head, instead of in logits.

DDP and FSDP act where their module is called, and FSDP2 holds the head whole only within that
call; so what reads the head belongs inside.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor

from comal_kernels.integrations.transformers.head import LMHead, plain
from comal_kernels.integrations.transformers.packed import predictor_states
from comal_kernels.packing.sequences import Packed

Objective = Callable[[Tensor, LMHead], Any]  # of last states, (N, H) or (B, L, H), and the head


def accept_objective(model: Any, *, check: bool = True) -> None:
    """Let `model(…, objective=f)` give `f(states, head)`; other calls are as before.

    states: (N, H) of the predictors of `packed`, where that is given (inside `packed_attention`);
    else (B, L, H) of the model's own inputs, as its layers end.
    model: of transformers, or a peft model around one; patched in place, before it is wrapped for
    several ranks. check: as of `LMHead.from_model`.
    """
    LMHead.from_model(model, check=check)  # says what is wrong before anything runs
    inside = plain(model)
    before = inside.forward

    @wraps(before)  # `generate` checks its arguments against the signature
    def forward(
        self: Any,
        *args: Any,
        packed: Packed | None = None,
        objective: Objective | None = None,
        **inputs: Any,
    ) -> Any:
        if objective is None:
            return before(*args, **inputs)
        if packed is None:
            states = self.base_model(*args, **inputs).last_hidden_state
        else:
            states = predictor_states(self, packed)
        return objective(states, LMHead.from_model(self, check=False))

    inside.forward = MethodType(forward, inside)
