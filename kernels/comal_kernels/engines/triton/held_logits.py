"""A chunk's logits between the two passes of training: held raw, or softened as they are made.

Both give `gradient(coef)` → (G (n, V), factor (n, 1) or None): d loss / d product is factor · G.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from comal_kernels.engines import products
from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.launch import choose_tile, epilogue_arguments, product_arguments
from comal_kernels.engines.triton.training_kernels import (
    gradient_kernel,
    reduce_kernel,
    soften_kernel,
)
from comal_kernels.head import Head

ROW_ALIGNMENT = 64  # elements: tensor descriptors and cuBLAS's fastest kernels want it
FAR = 60.0  # largest logit − shift: Σ exp(z − shift) · V stays far below float32's largest


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
    Rows so unlikely that this would overflow are done again, measured from their largest logit.
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
        self.pick = self.soft.new_empty(x.shape[0], dtype=torch.float32)
        self.shift = self._target_logits(x) if lse is None else lse
        top, self.total = self._soften(x, torch.ones_like(target, dtype=torch.int32))
        far = ~(top - self.shift < FAR)  # or not a number
        self.shift = torch.where(far, top, self.shift)
        _, total = self._soften(x, far.int())  # returns at once where no row is far
        self.total = torch.where(far, total, self.total)
        return None if lse is not None else (self.pick - self.shift) - self.total.log()

    def _target_logits(self, x: Tensor) -> Tensor:  # (n, H) → (n,) float32
        head = self.head
        z = (x.float() * head.weight.index_select(0, self.target)).sum(1)
        if head.bias is not None:
            z = z + head.bias.index_select(0, self.target)
        z = z * head.inner
        z = z.tanh() * head.outer if head.softcap else z
        return torch.where(z.isfinite(), z, 0.0)

    def _soften(self, x: Tensor, due: Tensor) -> tuple[Tensor, Tensor]:
        """Fill `soft` and `pick`, in blocks of rows with one due (n,); return, 0 in the others,
        the largest logits and Σ exp(z − shift), (n,) each.
        """
        n, vocab = self.soft.shape
        tile, even = choose_tile(tuning.SOFTEN, self.head, x)
        tiles = triton.cdiv(vocab, tile.block_v)
        tops, totals = self.shift.new_zeros(2, tiles, n).unbind(0)
        soft: Any = self.soft
        if tile.tma:
            soft = TensorDescriptor.from_tensor(soft, [tile.block_n, tile.block_v // 2])
        soften_kernel[(triton.cdiv(n, tile.block_n) * tiles,)](
            target=self.target,
            shift=self.shift,
            due=due,
            soft=soft,
            tops=tops,
            totals=totals,
            picks=self.pick,
            stride=self.soft.stride(0),
            **product_arguments(self.head, x, tile, even),
            **epilogue_arguments(self.head),
        )
        return tops.amax(0), totals.sum(0)

    def gradient(self, coef: Tensor) -> tuple[Tensor, Tensor | None]:
        """coef (n,) float32 → (G (n, V), factor (n, 1)): the entry at the target is set here."""
        head = self.head
        own = (self.pick - self.shift).exp() - self.total
        if head.softcap:
            own = own * (1.0 - (self.pick / head.outer).square())
        self.soft.scatter_(1, self.target[:, None], own.to(self.soft.dtype)[:, None])
        factor = -head.inner * head.outer * coef / self.total
        return self.soft, factor[:, None]
