"""`generation:`, sampling from the current policy: a class an engine.

Its code is `comal_fast/generation/ENGINE.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from comal_fast.config.choice import Choice
from comal_fast.config.options import Options, how

ENGINE_CHOICE = Choice("engine", "engine", default="transformers")


class GenerationConfig(Options):
    """Sampling from the current policy."""

    repeatable: ClassVar[bool] = True
    """Whether samples depend on the seed and the prompt alone, up to rounding."""

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


class VllmOptions(Options):
    """vLLM's process, by vLLM's own names where it has one."""

    python: str | None = how(None, min_length=1)
    """Python of the environment that has vLLM. None: this one."""
    tensor_parallel_size: int = how(1, ge=1)
    """GPUs over which an engine splits the model."""
    data_parallel_size: int | None = how(None, ge=1)
    """Engines on this machine, each with a share of the prompts and GPUs of its own. None: one;
    under torchrun as many as the GPUs of a node's ranks are enough for."""
    gpu_memory_utilization: float = how(0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine takes; on a CPU of the machine's."""
    max_model_len: int | None = how(None, ge=2)
    """Longest prompt with its response, in tokens. None: what the longest prompt needs."""
    quantization: str | None = Field(None, min_length=1)
    """How vLLM holds the weights (`fp8`, `bitsandbytes`, …). None: as they are stored."""
    enforce_eager: bool = how(False)
    """Neither compile nor capture graphs: slower, starts sooner, takes less memory."""
    max_num_seqs: int | None = how(None, ge=1)
    """Responses decoded together. None: vLLM's default."""
    stall_minutes: float = how(10.0, gt=0)
    """Without a sign of life for so long, an engine counts as hung."""


@ENGINE_CHOICE.register
class VllmConfig(GenerationConfig):
    """vLLM, in a process of its own for as long as it samples."""

    repeatable: ClassVar[bool] = False  # rounding changes with what is computed together

    engine: Literal["vllm"] = "vllm"
    """vLLM, in a process of its own for as long as it samples."""
    vllm: VllmOptions = Field(default_factory=VllmOptions)
    """vLLM's process."""
