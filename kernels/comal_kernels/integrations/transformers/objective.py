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

Objective = Callable[[Tensor, LMHead], Any]  # of the predictors' states (N, H) and the head


def accept_objective(model: Any) -> None:
    """Let `model(packed=…, objective=…)` give `objective(states, head)`; other calls are as before.

    model: of transformers, or a peft model around one; patched in place, before it is wrapped for
    several ranks. Such calls belong inside `packed_attention`.
    """
    LMHead.from_model(model)  # says what is wrong before anything runs
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
        if packed is None or objective is None:
            return before(*args, **inputs)
        return objective(predictor_states(self, packed), LMHead.from_model(self, check=False))

    inside.forward = MethodType(forward, inside)
