"""A gradient times a factor that only the device knows."""

from __future__ import annotations

import torch
from torch import Tensor

from comal_kernels.execution import TRITON_DTYPES, interpreted, triton_installed


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """Return x times factor (), in x's own memory where the graph needs x no more.

    Nearly always the factor is 1, and then x is neither read nor written: on the host that is known
    without waiting, and a kernel sees it on the device.

    Args:
        x: A tensor that the forward pass saved for this backward pass.
        factor: d loss / d output.
    """
    eager = type(x) is Tensor and type(factor) is Tensor  # not traced by a compiler
    if eager and factor.device.type == "cpu" and factor.item() == 1.0:
        return x
    if eager and _by_triton(x) and not _graph_is_kept():
        from comal_kernels.engines.triton.launch import scale_in_place

        scale_in_place(x, factor)
        return x
    scaled_x: Tensor = scaled(x, factor)
    return scaled_x


@torch.library.custom_op("comal_kernels::scaled", mutates_args=())
def scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x times factor (), which is never rounded to x's dtype."""
    if _by_triton(x):
        from comal_kernels.engines.triton.launch import scale

        return scale(x, factor, x.dtype)
    if x.is_cuda:
        return x * factor.to(x.dtype)
    return x * factor.item()  # a number of Python's is not rounded either


@scaled.register_fake
def _(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)


def _by_triton(x: Tensor) -> bool:
    fits = x.dtype in TRITON_DTYPES and x.is_contiguous() and x.numel() > 0
    return fits and (x.is_cuda or interpreted()) and triton_installed()


def _graph_is_kept() -> bool:
    """Return whether the running backward pass was asked to `retain_graph`; True if unknown."""
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asked is None else bool(asked())
