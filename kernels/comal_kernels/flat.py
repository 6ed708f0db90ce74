"""Custom ops take tensors and scalars alone: a head and its execution lie flat among the arguments.

In both ops `hidden` comes first and the two records last, in the order of SCHEMA; hidden, weight
and bias are what can have gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from comal_kernels.execution import Execution
from comal_kernels.head import Head

T = TypeVar("T")
Maybe = Tensor | None
SCHEMA = f"{Head.SCHEMA}, {Execution.SCHEMA}"
_PARTS, _COUNT = len(fields(Head)), len(fields(Head)) + len(fields(Execution))
_TRAINED = (0, -_COUNT, 1 - _COUNT)  # hidden, weight, bias among an op's arguments


def restore(flat: Sequence[Any]) -> tuple[Head, Execution]:
    """The records whose parts lie flat at the end of an op's arguments."""
    return Head(*flat[:_PARTS]), Execution(*flat[_PARTS:])


def trained(arguments: Sequence[T]) -> list[T]:
    """The entries of hidden, weight and bias, of a sequence with one for each argument."""
    return [arguments[at] for at in _TRAINED]


def no_grads(arguments: Sequence[object]) -> list[Any]:
    """No gradient for any of an op's arguments, as autograd wants it: an entry for each."""
    return [_no_grad(x) for x in arguments]


def _no_grad(argument: object) -> list[None] | None:
    # torch counts the tensors of a list one by one, and takes any empty list for one of tensors
    if isinstance(argument, list) and all(isinstance(x, Tensor) for x in argument):
        return [None] * len(argument)
    return None


def with_grads(none: Sequence[Any], grads: Iterable[Maybe]) -> tuple[Any, ...]:
    """`none`, as from `no_grads`, with the gradients of hidden, weight and bias in their places."""
    result = list(none)
    for at, grad in zip(_TRAINED, grads, strict=True):
        result[at] = grad
    return tuple(result)


def filled(hidden: Tensor, results: Iterable[Maybe]) -> tuple[Tensor, ...]:
    """An op's results with an empty tensor, (0,), for each None."""
    return tuple(hidden.new_empty(0) if x is None else x for x in results)


def fake_grads(
    needs: Sequence[bool], hidden: Tensor, weight: Tensor, bias: Maybe
) -> tuple[Tensor, ...]:
    """Unwritten gradients of hidden, weight and bias, (0,) where there is no need of one."""
    inputs = zip((hidden, weight, bias), needs, strict=True)
    grads = (torch.empty_like(x) if need and x is not None else None for x, need in inputs)
    return filled(hidden, grads)
