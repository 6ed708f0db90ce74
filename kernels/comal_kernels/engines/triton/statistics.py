"""Statistics by the Triton backend: cuBLAS's products, swept once each way where they lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comal_kernels.engines import products
from comal_kernels.engines.statistics import Slopes, Statistics, from_sums
from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.engine import TritonEngine
from comal_kernels.engines.triton.launch import epilogue_arguments
from comal_kernels.engines.triton.statistics_kernels import slopes_kernel, statistics_kernel
from comal_kernels.head import Head


class TritonStatistics(TritonEngine):
    """`StatisticsEngine` in float32, bfloat16 or float16."""

    def __init__(self, head: Head, capacity: int, **options: Any) -> None:
        super().__init__(head, capacity, **options)
        self.logp_rows = capacity  # their logits are held
        self.buffer: Tensor | None = None  # (capacity, V) float32, made on first use

    def _project(self, x: Tensor) -> Tensor:  # (n, H) → (n, V) float32 products
        if self.buffer is None:
            shape = (self.capacity, self.head.weight.shape[0])
            self.buffer = torch.empty(shape, dtype=torch.float32, device=x.device)
        z = self.buffer[: x.shape[0]]
        products.project(x, self.head.weight, z)
        return z

    def statistics(self, x: Tensor, target: Tensor, k: int) -> Statistics:
        z, n = self._project(x), x.shape[0]
        numbers = z.new_empty(5, n, dtype=torch.float64)
        likeliest = torch.empty(n, dtype=torch.int8, device=x.device)
        statistics_kernel[(n,)](
            logits=z,
            target=target,
            numbers=numbers,
            likeliest=likeliest,
            n=n,
            KEEP=k > 0,
            **self._sweep(z, tuning.STATISTICS_BLOCK),
        )
        picked, top, total, weighted, sums = numbers.unbind(0)
        values, ids = z.topk(min(k, z.shape[1]), dim=1)
        means, hit = sums / z.shape[1], likeliest.bool()
        return from_sums(picked, top, total, weighted, means, hit, values, ids, torch.float32)

    def differentiate(
        self, x: Tensor, target: Tensor, found: Statistics, by: Slopes
    ) -> Tensor | None:
        z, self.x = self._project(x), x
        zero = torch.zeros_like(found.lse)
        share = zero if by.logp is None else by.logp.float()
        of_p = (zero if by.lse is None else by.lse.float()) - share
        of_entropy = zero if by.entropy is None else -by.entropy.float()
        likely = None if by.topk is None else by.topk.float().contiguous()
        if likely is not None:
            of_p = of_p - likely.sum(1)
        exact = (-found.rest).exp()
        grads = z.view(x.dtype)[:, : z.shape[1]]
        slopes_kernel[(x.shape[0],)](
            logits=z,
            grads=grads,
            target=target,
            lses=found.lse,
            of_p=(of_p + of_entropy * found.entropy) * exact,
            of_entropy=of_entropy * exact,
            of_every=zero if by.mean_logit is None else by.mean_logit.float() / z.shape[1],
            of_target=share.contiguous(),
            ids=found.topk_ids.contiguous(),
            of_ids=zero if likely is None else likely,
            grad_stride=grads.stride(0),
            k=0 if likely is None else likely.shape[1],
            **self._sweep(z, tuning.EPILOGUE_BLOCK),
        )
        return self._back(grads, None)

    def _sweep(self, z: Tensor, block: int) -> dict[str, Any]:
        """What both kernels take of z (n, V) and the head."""
        return {
            "vocab": z.shape[1],
            "stride": z.stride(0),
            "BLOCK_V": block,
            "num_warps": tuning.EPILOGUE_WARPS,
            **epilogue_arguments(self.head),
        }
