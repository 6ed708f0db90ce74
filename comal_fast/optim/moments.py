"""AdamW's two moments of a parameter: how they are held, and the update that reads and writes them.

The updates here are those of libraries: torch's fused AdamW kernel, and bitsandbytes' 8-bit one on
CPUs. On a GPU `adamw_kernel` makes those that `runs_kernel` names, with the same mathematics.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from comal_fast.config.training import OptimizerState
from comal_fast.optim.slices import parts, zeros_beside
from comal_kernels.execution import triton_installed

BLOCK = 256  # elements that share a scale in bitsandbytes' 8-bit kernels
SMALLEST = (
    4096  # parameters with fewer elements keep float32 moments, as in bitsandbytes and torchao
)


class Dense:
    """Moments in floating point: in `dtype`, or where it is None in that of the parameter."""

    per: ClassVar = {"exp_avg": 1, "exp_avg_sq": 1}  # elements of the parameter to one entry

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments before the first step, beside the parameter."""
        dtype = self.dtype or parameter.dtype
        return {name: torch.zeros_like(parameter, dtype=dtype) for name in self.per}

    def working_dtype(self, parameter: Tensor) -> torch.dtype:
        """The dtype in which `update` wants weights and gradient."""
        return self.dtype or parameter.dtype

    def update(
        self,
        weights: Tensor,  # (N,) updated in place
        gradient: Tensor,  # (N,)
        state: dict[str, Tensor],  # (N,) each, updated in place
        step: int,
        group: dict[str, Any],
        divisor: Tensor | None = None,  # () float32, of the gradient, which may be overwritten
    ) -> None:
        """Make the step-th update, counted from 1."""
        beta1, beta2 = group["betas"]
        adamw(
            [weights],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [torch.full((), step - 1.0, dtype=torch.float32, device=weights.device)],
            fused=True,
            grad_scale=divisor,
            amsgrad=False,
            maximize=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )


class EightBit:
    """Moments in 8 bits, block-wise with a dynamic code (arXiv 2110.02861).

    The second moment's code holds no zero (arXiv 2309.01507): with one, elements whose gradient is
    small beside their block's are divided by nothing, in steps of thousands of learning rates.
    """

    per: ClassVar = {
        "exp_avg": 1,
        "exp_avg_sq": 1,
        "exp_avg_scale": BLOCK,
        "exp_avg_sq_scale": BLOCK,
    }

    def zeros(self, parameter: Tensor) -> dict[str, Tensor]:
        """The moments before the first step, beside the parameter: a scale of 0 makes them 0."""
        codes = ("exp_avg", "exp_avg_sq")
        state = {name: torch.zeros_like(parameter, dtype=torch.uint8) for name in codes}
        for name in codes:
            state[f"{name}_scale"] = zeros_beside(parameter, _scale_shape(parameter))
        return state

    def working_dtype(self, parameter: Tensor) -> torch.dtype:
        """The dtype in which `update` wants weights and gradient."""
        return parameter.dtype

    def update(
        self,
        weights: Tensor,  # (N,) updated in place
        gradient: Tensor,  # (N,)
        state: dict[str, Tensor],  # (N,) codes and (N / BLOCK,) scales, updated in place
        step: int,
        group: dict[str, Any],
        divisor: Tensor | None = None,  # () float32, of the gradient
    ) -> None:
        """Make the step-th update, counted from 1; computed in float32."""
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        beta1, beta2 = group["betas"]
        optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            weights,
            state["exp_avg"],
            state["exp_avg_sq"],
            beta1,
            beta2,
            0.0,  # beta3 and alpha: of another optimiser
            0.0,
            group["eps"],
            step,
            group["lr"],
            _code(weights.device, signed=True),
            _code(weights.device, signed=False),
            state["exp_avg_scale"],
            state["exp_avg_sq_scale"],
            group["weight_decay"],
            1.0 if divisor is None else 1 / divisor.item(),
        )


Moments = Dense | EightBit


def choose_moments(kind: OptimizerState, parameter: Tensor) -> Moments:
    """How `training.optimizer_state` holds the moments of this parameter.

    "8bit" holds those of small parameters, and of any that are not made of whole blocks on every
    rank, in float32. What is held does not depend on the number of ranks but for rows that are no
    whole blocks and can't be dealt evenly.
    """
    if kind == "model":
        return Dense()
    if kind == "8bit" and parameter.numel() >= SMALLEST and _in_blocks(parameter):
        return EightBit()
    return Dense(torch.float32)


def runs_kernel(parameter: Tensor, moments: Moments, rounded: bool) -> bool:
    """Return whether our Triton kernel updates the parameter, on the GPU where it lies.

    It does where the moments are coded, where weights are rounded stochastically, and where the
    moments have another dtype than the weights; torch's fused kernel does the rest.
    """
    mixed = moments.working_dtype(parameter) is not parameter.dtype
    wanted = isinstance(moments, EightBit) or rounded or mixed
    return wanted and parameter.is_cuda and triton_installed()


def _in_blocks(parameter: Tensor) -> bool:
    """Whether every rank has whole blocks, the same ones that a single rank would have."""
    count, ranks = parameter.numel(), parts(parameter)
    if _row(parameter) % BLOCK == 0:
        return True
    return count % (BLOCK * ranks) == 0 and parameter.shape[0] % ranks == 0


def _row(parameter: Tensor) -> int:
    """Elements of one index of the first dimension, which is the one that ranks share out."""
    return parameter.numel() // parameter.shape[0]


def _scale_shape(parameter: Tensor) -> tuple[int, ...]:
    """(rows, blocks of a row), or (blocks,) where a row is no whole blocks."""
    if _row(parameter) % BLOCK == 0:
        return parameter.shape[0], _row(parameter) // BLOCK
    return (parameter.numel() // BLOCK,)


@cache
def _code(device: torch.device, signed: bool) -> Tensor:
    from bitsandbytes.functional import create_dynamic_map

    code = create_dynamic_map(signed=signed)  # (256,) ascending
    if not signed:
        code[0] = code[1] / 2
    return code.to(device)
