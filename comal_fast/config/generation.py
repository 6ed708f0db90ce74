"""`generation:`, sampling from the current policy: a class an engine.

Its code is `comal_fast/generation/ENGINE.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from comal_fast.config.choice import Choice
from comal_fast.config.options import Options

ENGINE_CHOICE = Choice("engine", "engine", default="transformers")


class GenerationConfig(Options):
    """Sampling from the current policy."""

    engine: str
    """What generates."""
    num_generations: int = Field(5, ge=2)
    """K, responses per prompt."""
    max_new_tokens: int = Field(1024, ge=1)
    """Longest response, in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Softmax temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus: 1 samples from the whole vocabulary."""


@ENGINE_CHOICE.register
class TransformersConfig(GenerationConfig):
    """In this process, by the model in memory."""

    engine: Literal["transformers"] = "transformers"
    """In this process, by the model in memory."""
    batch_size: int = Field(32, ge=1)
    """Responses decoded together; samples of another size differ by rounding at most."""
