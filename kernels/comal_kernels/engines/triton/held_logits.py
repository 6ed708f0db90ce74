"""A chunk's logits between the two passes of training: held raw, or softened as they are made.

Both give `gradient(coef)` → (G (n, V), factor (n,) or None): d loss / d product is factor · G.
"""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.engines import products
from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.launch import epilogue_arguments, pick, settle
from comal_kernels.engines.triton.training_kernels import gradient_kernel, reduce_kernel
from comal_kernels.head import Head

ROW_ALIGNMENT = 64  # elements: tensor descriptors and cuBLAS's fastest kernels want it


class RawLogits:
    """float32 products by cuBLAS; one sweep for log-probs, one for gradients in their place."""

    def __init__(self, head: Head, capacity: int) -> None:
        self.head = head
        shape = (capacity, head.weight.shape[0])
        self.buffer = torch.empty(shape, dtype=torch.float32, device=head.weight.device)

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None) -> Tensor | None:
        """Hold the logits of x (n, H); returns log-probs (n,), or None where lse (n,) is known."""
        n = x.shape[0]
        self.dtype, self.target, self.z = x.dtype, target, self.buffer[:n]
        products.project(x, self.head.weight, self.z)
        if lse is not None:
            self.top, self.rest = lse, torch.zeros_like(lse)
            return None
        logp, self.top, self.rest = self.buffer.new_empty(3, n).unbind(0)
        reduce_kernel[(n,)](
            logits=self.z,
            target=target,
            logp=logp,
            tops=self.top,
            rests=self.rest,
            vocab=self.z.shape[1],
            stride=self.z.stride(0),
            BLOCK_V=tuning.EPILOGUE_BLOCK,
            num_warps=tuning.EPILOGUE_WARPS,
            **epilogue_arguments(self.head),
        )
        return logp

    def gradient(self, coef: Tensor) -> tuple[Tensor, Tensor | None]:
        """coef (n,) float32 → gradients (n, V), rows 4 V bytes apart, and no factor."""
        vocab = self.z.shape[1]
        grads = self.z.view(self.dtype)[:, :vocab]
        gradient_kernel[(self.z.shape[0],)](
            logits=self.z,
            grads=grads,
            target=self.target,
            tops=self.top,
            rests=self.rest,
            coef=coef,
            vocab=vocab,
            stride=self.z.stride(0),
            grad_stride=grads.stride(0),
            BLOCK_V=tuning.EPILOGUE_BLOCK,
            num_warps=tuning.EPILOGUE_WARPS,
            **epilogue_arguments(self.head),
        )
        return grads, None


class SoftLogits:
    """exp(z − shift) in the inputs' dtype, written once by the product's own kernel.

    `shift` is the target's logit, from a product of its own, so Σ exp(z − shift) = 1 / p(target).
    """

    def __init__(self, head: Head, capacity: int) -> None:
        self.head = head
        weight = head.weight
        stride = -(-weight.shape[0] // ROW_ALIGNMENT) * ROW_ALIGNMENT
        memory = torch.empty(capacity, stride, dtype=weight.dtype, device=weight.device)
        self.buffer = memory[:, : weight.shape[0]]

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None) -> Tensor | None:
        """Hold the logits of x (n, H); returns log-probs (n,), or None where lse (n,) is known."""
        x, self.target, self.soft = x.contiguous(), target, self.buffer[: x.shape[0]]
        self.pick = pick(self.head, x, target)
        shift = self.pick if lse is None else lse
        self.shift, self.total = settle(self.head, x, shift, self.soft)
        return None if lse is not None else (self.pick - self.shift) - self.total.log()

    def gradient(self, coef: Tensor) -> tuple[Tensor, Tensor | None]:
        """coef (n,) float32 → (G (n, V), factor (n,)): the entry at the target is set here."""
        head = self.head
        own = (self.pick - self.shift).exp() - self.total
        if head.softcap:
            own = own * (1.0 - (self.pick / head.outer).square())
        self.soft.scatter_(1, self.target[:, None], own.to(self.soft.dtype)[:, None])
        return self.soft, -head.inner * head.outer * coef / self.total
