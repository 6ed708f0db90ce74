"""Packed passes of the trainer's models; what rules a model out is told the user in a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comal_fast.errors import InputError
from comal_kernels.errors import ModelError
from comal_kernels.integrations import transformers as packing


@contextmanager
def packed_attention(model: Any, requested: str) -> Iterator[None]:
    """Within the block, `model` attends as `predictor_states` lays it out.

    `requested`: `model.attn_implementation`. Raises InputError where the model can't be packed
    exactly or the engine can't run it.
    """
    with as_input_errors(), packing.packed_attention(model, requested):
        yield


@contextmanager
def as_input_errors() -> Iterator[None]:
    """Within the block, what rules the model out is an InputError."""
    try:
        yield
    except ModelError as error:
        option = "model." if str(error).startswith("attn_implementation") else ""
        raise InputError(f"{option}{error}") from error
