"""Captured graphs: the operators that ran are noted, and run again into the same memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor


def _tensors(x: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that an operator writes to."""
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    writes = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    return _tensors([named.get(name) for name in writes])


class CUDAGraph:
    """As torch.cuda.CUDAGraph: what is captured is not done yet, and done by every `replay`."""

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def capture_begin(self, *given: Any, **named: Any) -> None:
        """Note what runs from here."""
        self.mode = _Capture(self.calls)
        self.mode.__enter__()

    def capture_end(self) -> None:
        """Undo it."""
        self.mode.__exit__(None, None, None)
        for tensor, before in reversed(self.mode.before):
            tensor.copy_(before)

    def replay(self) -> None:
        """Do it again, with what its inputs hold now."""
        for func, args, kwargs, results in self.calls:
            for old, new in zip(_tensors(results), _tensors(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

    def pool(self) -> tuple[int, int]:
        """What another graph's memory may come from."""
        return 0, 1


class _Capture(TorchDispatchMode):
    def __init__(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        super().__init__()
        self.calls = calls
        self.before: list[tuple[Tensor, Tensor]] = []
        self._launch: Any = GridExecutor.__call__

    def __enter__(self) -> Any:
        """Note launches of Triton's kernels too, which no operator tells of."""

        def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
            self.before += [(x, x.clone()) for x in _tensors([args, kwargs])]
            again = partial(self._launch, executor)
            with _disable_current_modes():  # the interpreter computes by operators
                again(*args, **kwargs)
            self.calls.append((again, args, kwargs, None))

        GridExecutor.__call__ = launch
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        GridExecutor.__call__ = self._launch
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_cuda:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.before += [(x, x.clone()) for x in _written(func, args, kwargs)]
        results = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, results))
        return results


@contextmanager
def graph(captured: CUDAGraph, pool: Any = None, **named: Any) -> Iterator[None]:
    """As torch.cuda.graph."""
    captured.capture_begin()
    try:
        yield
    finally:
        captured.capture_end()
