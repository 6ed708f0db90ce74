"""The engine of the Triton backend: launches the kernels; cuBLAS does the training products.

Forward-only log-probs hold no logits. In training a chunk's float32 logits become gradients in the
products' dtype in place, and dW adds up in float32.
"""

from __future__ import annotations

import functools

import torch
import triton
from torch import Tensor

from comal_kernels.head import Head
from comal_kernels.ops import products, tuning
from comal_kernels.ops.linear_logprob.kernels import combine_kernel, partial_kernel
from comal_kernels.ops.prox_loss.kernels import gradient_kernel, reduce_kernel

LOGP_ROWS = 1 << 16  # bounds the partial results, (splits, n)


@functools.cache
def processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # interpreted: enough for several splits
    return torch.cuda.get_device_properties(device).multi_processor_count


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability × 10; what is interpreted passes for Hopper."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


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
        grad_filter: float | None = None,
    ) -> None:
        if not head.weight.is_cuda and isinstance(partial_kernel, triton.JITFunction):
            raise ValueError(
                "backend: the Triton kernels were loaded before TRITON_INTERPRET=1 was set; "
                "expected it in the environment before the first use"
            )
        if head.weight.stride(1) != 1:
            head = Head(
                head.weight.contiguous(),
                head.bias,
                head.softcap,
                head.logit_scale,
                head.temperature,
            )
        self.head, self.capacity, self.logp_rows = head, capacity, LOGP_ROWS
        self.need_x, self.need_weight, self.grad_filter = need_x, need_weight, grad_filter
        self.vocab, self.width = head.weight.shape
        self.device = head.weight.device
        self.buffer: Tensor | None = None  # (capacity, V) float32, made on first use
        self.dweight: Tensor | None = None  # (V, H) float32, made on first use
        self.dbias = self._zeros(self.vocab) if need_bias else None

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    @property
    def _options(self) -> dict[str, object]:
        head = self.head
        return {
            "bias": head.weight if head.bias is None else head.bias.contiguous(),
            "inner": head.inner,
            "outer": head.outer,
            "HAS_BIAS": head.bias is not None,
            "SOFTCAP": head.softcap is not None,
        }

    def logp(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        n, weight = x.shape[0], self.head.weight
        sizes = (self.width, weight.stride(0), weight.data_ptr())
        aligned = all(size % 16 == 0 for size in sizes)
        tile, even = tuning.forward_tile(architecture(self.device), x.dtype, self.width, aligned)
        blocks = triton.cdiv(n, tile.block_n)
        tiles = triton.cdiv(self.vocab, tile.block_v)
        splits, each = tuning.split_vocabulary(blocks, tiles, processors(self.device))
        tops, totals, picks = self._empty(3, splits, n).unbind(0)
        x = x.contiguous()
        partial_kernel[(blocks, splits)](
            x=x,
            weight=weight,
            target=target,
            tops=tops,
            totals=totals,
            picks=picks,
            n=n,
            vocab=self.vocab,
            width=self.width,
            stride_x=x.stride(0),
            stride_w=weight.stride(0),
            split_tiles=each,
            EVEN=even,
            PRECISION="ieee",
            BLOCK_N=tile.block_n,
            BLOCK_V=tile.block_v,
            BLOCK_H=tile.block_h,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self._options,
        )
        logp, lse = self._empty(2, n).unbind(0)
        combine_kernel[(triton.cdiv(n, tuning.COMBINE_ROWS),)](
            tops,
            totals,
            picks,
            logp,
            lse,
            n,
            splits,
            SPLITS=triton.next_power_of_2(splits),
            BLOCK_N=tuning.COMBINE_ROWS,
        )
        return logp, lse

    def load(self, x: Tensor, target: Tensor, lse: Tensor | None = None) -> Tensor | None:
        if self.buffer is None:
            self.buffer = self._empty(self.capacity, self.vocab)
        n = x.shape[0]
        self.x, self.target, self.z = x, target, self.buffer[:n]
        products.project(x, self.head.weight, self.z)
        if lse is not None:
            self.lse = lse
            return None
        logp, self.lse = self._empty(2, n).unbind(0)
        reduce_kernel[(n,)](
            logits=self.z,
            target=target,
            logp=logp,
            lse=self.lse,
            vocab=self.vocab,
            stride=self.z.stride(0),
            BLOCK_V=tuning.EPILOGUE_BLOCK,
            num_warps=tuning.EPILOGUE_WARPS,
            **self._options,
        )
        return logp

    def backward(self, coef: Tensor) -> Tensor | None:
        grad = self.z.view(self.x.dtype)[:, : self.vocab]  # (n, V), rows 4 V bytes apart
        gradient_kernel[(self.x.shape[0],)](
            logits=self.z,
            grads=grad,
            target=self.target,
            lse=self.lse,
            coef=coef.float().contiguous(),
            vocab=self.vocab,
            stride=self.z.stride(0),
            grad_stride=grad.stride(0),
            BLOCK_V=tuning.EPILOGUE_BLOCK,
            num_warps=tuning.EPILOGUE_WARPS,
            **self._options,
        )
        if self.dbias is not None:
            self.dbias += grad.sum(0, dtype=torch.float32)
        if self.need_weight and self.dweight is None:
            self.dweight = self._zeros(self.vocab, self.width)
        if self.grad_filter is not None:
            return self._filtered(grad, self.grad_filter * float(coef.abs().max()))
        if self.dweight is not None:
            products.accumulate(self.dweight, grad.t(), self.x)
        return products.back(grad, self.head.weight) if self.need_x else None

    def _filtered(self, grad: Tensor, least: float) -> Tensor | None:  # (n, V)
        words = products.surviving(grad, least * self.head.inner * self.head.outer)
        part = grad.index_select(1, words)
        if self.dweight is not None:
            total = self.dweight.index_select(0, words)
            products.accumulate(total, part.t(), self.x)
            self.dweight.index_copy_(0, words, total)
        if not self.need_x:
            return None
        return products.back(part, self.head.weight.index_select(0, words))

    def reader(self, head: Head) -> TritonEngine:
        return TritonEngine(head, self.capacity, need_x=False, need_weight=False, need_bias=False)

    def weight_grads(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = self.head.weight, self.head.bias
        dweight = self.dweight
        if self.need_weight:
            dweight = torch.zeros_like(weight) if dweight is None else dweight.to(weight.dtype)
        return dweight, None if self.dbias is None or bias is None else self.dbias.to(bias.dtype)
