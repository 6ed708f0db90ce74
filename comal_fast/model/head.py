"""A model's head as `comal_kernels` takes it."""

from __future__ import annotations

from typing import Any


def head_arguments(model: Any) -> dict[str, Any]:
    """`weight`, `bias`, `softcap`, `logit_scale` of the model's head, for comal_kernels."""
    head, config = model.get_output_embeddings(), model.config
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return {
        "weight": head.weight,
        "bias": getattr(head, "bias", None),
        "softcap": getattr(config, "final_logit_softcapping", None),
        "logit_scale": float(scale),
    }
