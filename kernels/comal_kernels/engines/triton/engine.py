"""The engine of the Triton backend: kernels up to the logits' gradients, cuBLAS for dW and dH.

Forward-only log-probs hold no logits. dW adds up in float32 over the chunks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
from torch import Tensor

from comal_kernels.engines import products
from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.held_logits import RawLogits, SoftLogits
from comal_kernels.engines.triton.launch import architecture, pick, scale, settle
from comal_kernels.engines.triton.training_kernels import soften_kernel
from comal_kernels.head import Head

LOGP_ROWS = 1 << 14  # bounds the partial sums, (tiles, n)


def softened(head: Head) -> bool:
    """Return whether training holds exp(logit) in the inputs' dtype, not float32 logits."""
    return tuning.soft(architecture(head.weight.device), head.weight.dtype)


class TritonEngine:
    """float32, bfloat16 or float16; CUDA tensors, or any under TRITON_INTERPRET=1."""

    def __init__(
        self,
        head: Head,
        capacity: int,
        *,
        need_x: bool,
        need_weight: bool,
        need_bias: bool,
        single: bool = False,  # all rows come in one chunk: dW is rounded once, as it is made
    ) -> None:
        if not head.weight.is_cuda and isinstance(soften_kernel, triton.JITFunction):
            raise ValueError(
                "backend: the Triton kernels were loaded before TRITON_INTERPRET=1 was set; "
                "expected it in the environment before the first use"
            )
        if head.weight.stride(1) != 1:
            head = replace(head, weight=head.weight.contiguous())
        self.head, self.capacity, self.logp_rows = head, capacity, LOGP_ROWS
        self.need_x, self.need_weight, self.single = need_x, need_weight, single
        self.held: RawLogits | SoftLogits | None = None  # made on first use, as is dweight
        self.dweight: Tensor | None = None  # (V, H) float32, or finished where `single`
        self.dbias: Tensor | None = None  # (V,) float32
        if need_bias:
            self.dbias = head.weight.new_zeros(head.weight.shape[0], dtype=torch.float32)

    def logp(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        picked = pick(self.head, x, target)
        shift, total = settle(self.head, x, picked, None)
        rest = total.log()
        return (picked - shift) - rest, shift + rest

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None = None) -> Tensor | None:
        if self.held is None:
            kind = SoftLogits if softened(self.head) else RawLogits
            self.held = kind(self.head, self.capacity)
        self.x = x
        return self.held.load(x, target, lse)

    def backward(self, coef: Tensor) -> Tensor | None:
        assert self.held is not None
        return self._back(*self.held.gradient(coef.float().contiguous()))

    def _back(self, grad: Tensor, factor: Tensor | None) -> Tensor | None:
        """dx (n, H) of d loss / d product = factor (n,) · grad (n, V); adds to dW and dbias."""
        x = self.x.contiguous()
        if self.dbias is not None:
            self.dbias += (
                (grad if factor is None else grad.float() * factor[:, None]).sum(0).float()
            )
        if self.need_weight:
            scaled = x if factor is None else scale(x, factor, x.dtype)
            if self.single:
                assert self.dweight is None, "a second chunk"
                self.dweight = products.back(grad.t(), scaled, self.head.weight.dtype)
            else:
                self.dweight = products.accumulate(self.dweight, grad.t(), scaled)
        if not self.need_x:
            return None
        if factor is None:
            return products.back(grad, self.head.weight)
        return scale(products.back(grad, self.head.weight, torch.float32), factor, x.dtype)

    def reader(self, head: Head) -> TritonEngine:
        return TritonEngine(head, self.capacity, need_x=False, need_weight=False, need_bias=False)

    def weight_grads(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self.head.weight, self.head.bias
        dweight = self.dweight
        if self.need_weight:
            dweight = torch.zeros_like(weight) if dweight is None else dweight.to(weight.dtype)
        return dweight, None if self.dbias is None or bias is None else self.dbias.to(bias.dtype)
