"""Models of transformers: their head, log-probs in place of logits, packed passes."""

from comal_kernels.integrations.missing import need

need("transformers", "transformers")

from comal_kernels.integrations.transformers.attention import choose_engine, refuse  # noqa: E402
from comal_kernels.integrations.transformers.head import LMHead, plain  # noqa: E402
from comal_kernels.integrations.transformers.logprobs import (  # noqa: E402
    FusedLogprobs,
    with_fused_logprobs,
)
from comal_kernels.integrations.transformers.objective import accept_objective  # noqa: E402
from comal_kernels.integrations.transformers.packed import (  # noqa: E402
    packed_attention,
    predictor_states,
    refuse_moving_rope,
)

__all__ = [
    "FusedLogprobs",
    "LMHead",
    "accept_objective",
    "choose_engine",
    "packed_attention",
    "plain",
    "predictor_states",
    "refuse",
    "refuse_moving_rope",
    "with_fused_logprobs",
]
