"""A transformers model over packed rows: nobody sees a neighbour, a shared prompt runs once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from comal_kernels.errors import ModelError
from comal_kernels.gather import gather_rows
from comal_kernels.integrations.transformers.attention import ENGINES, choose_engine, refuse
from comal_kernels.packing.sequences import Packed

MOVING_ROPES = {"dynamic", "longrope"}  # their angles depend on the longest sequence of a pass


@contextmanager
def packed_attention(model: Any, requested: str) -> Iterator[None]:
    """Within the block, `model` attends as `predictor_states` lays it out.

    `requested`: `attn_implementation`. Raises ModelError where the model can't be packed
    exactly or the engine can't run it.
    """
    refuse(model)
    before = model.config._attn_implementation
    model.set_attn_implementation(ENGINES[choose_engine(requested, model)])
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def predictor_states(model: Any, packed: Packed) -> Tensor:
    """(N, H) final hidden states at `packed.predictors`: all that the head needs to see.

    Call it inside `packed_attention`.
    """
    refuse_moving_rope(model, max(s.keys for s in packed.layout.segments) + 1)
    output = model.base_model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        use_cache=False,
        layout=packed.layout,
    )
    return gather_rows(output.last_hidden_state[0], packed.predictors)


def refuse_moving_rope(model: Any, longest: int) -> None:
    """Raise ModelError where a sequence so long would change the positions of its neighbours."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in MOVING_ROPES:
        return
    limit = rope.get("original_max_position_embeddings") or model.config.max_position_embeddings
    if longest > limit:
        raise ModelError(
            f"packed attention can't do {rope['rope_type']} positions beyond {limit} tokens, where "
            f"they change for a whole pass; {type(model).__name__} has them, and a sequence has "
            f"{longest}; lower max_length"
        )
