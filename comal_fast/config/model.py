"""`model:`, the policy that is aligned, and `model.lora:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from comal_fast.config.options import Options, how

Dtype = Literal["float32", "bfloat16", "float16"]
Attention = Literal[
    "auto",
    "flash_attention_3",
    "flash_attention_4",
    "flash_attention_2",
    "torch_varlen",
    "flex_attention",
    "sdpa",
]


class LoraConfig(Options):
    """Low-rank adapters on frozen weights (arXiv 2106.09685), by peft."""

    r: int = Field(16, ge=1)
    """Rank of an adapter."""
    alpha: int = Field(32, ge=1)
    """Adapters count alpha/r times."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of what enters an adapter, in training alone."""
    target_modules: list[str] = Field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers that get one, such as `[q_proj, v_proj]`; `all-linear`: every one
    but the head, which is never adapted."""
    use_rslora: bool = False
    """alpha/√r instead of alpha/r (arXiv 2312.03732)."""

    @field_validator("target_modules")
    @classmethod
    def _layers_or_all(cls, targets: list[str]) -> list[str]:
        if not targets or ("all-linear" in targets and len(targets) > 1):
            raise ValueError(
                f"model.lora.target_modules: {targets}; give names of layers, or all-linear alone"
            )
        return targets


class ModelConfig(Options):
    """The policy that is aligned."""

    name_or_path: str
    """Hub name, local folder, or `package:NAME` for weights inside an installed Python package."""
    gguf_file: str | None = None
    """A GGUF file in that place; it is dequantised."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Dtype of weights and activations."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`; `auto` takes CUDA where there is one."""
    attn_implementation: Attention = "auto"
    """Attention over packed sequences. `auto`: on CUDA the first that is installed and can run the
    model exactly, of FlashAttention 3 (Hopper), 4 (Hopper and Blackwell) and 2, torch's
    `varlen_attn` and FlexAttention; on a CPU SDPA, a call per sequence. All but FlexAttention and
    SDPA take bfloat16 and float16 alone, torch's has no soft-capping."""
    lora: LoraConfig | None = None
    """Train adapters on the frozen weights; `{}` takes the defaults. None: train the weights."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4`: the frozen weights in 4 bits, all but embeddings and head (QLoRA, arXiv 2305.14314).
    Needs `model.lora`."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Without it nothing is run, nor asked."""
    pickled_weights: bool = how(False)
    """Read `pytorch_model.bin` where there are no safetensors: a pickle, read for its tensors
    alone (torch's `weights_only`)."""
    liger_kernels: Literal["auto", "on", "off"] = "auto"
    """Liger's kernels for norms, positions and gated MLPs: `auto` takes them on CUDA where
    liger-kernel is installed and knows the model."""
