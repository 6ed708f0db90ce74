"""A model's head as `comal_kernels` takes it, and whether that is the model's own."""

from __future__ import annotations

from typing import Any

from comal_fast.errors import InputError
from comal_kernels.errors import ModelError
from comal_kernels.integrations.transformers import LMHead


def head_arguments(model: Any) -> dict[str, Any]:
    """`weight`, `bias`, `softcap`, `logit_scale` of the model's head, for comal_kernels."""
    return LMHead.from_model(model, check=False).arguments()


def check_head(model: Any, name: str) -> None:
    """Raise InputError, with the difference seen, for a model whose head is not reproduced."""
    try:
        LMHead.from_model(model)
    except ModelError as error:
        raise InputError(f"model {name}: {str(error).removeprefix('model: ')}") from error
