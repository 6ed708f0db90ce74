"""Ways of training that cost less and less memory, and the options that give each.

`OPTIONS` is the one place where a mode meets the configuration's names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from comal_fast.config import Config
from comal_fast.plan.shapes import Shape

NF4_BYTES = 0.5 + 0.127 / 8  # a weight: 4 bits and its doubly quantised scale (arXiv 2305.14314)
EIGHT_BIT_BYTES = 2 * (1 + 4 / 256)  # two moments: 8 bits each, a float32 scale for 256 of them


@dataclass(frozen=True)
class Mode:
    """How the model is trained, as far as memory and time go."""

    name: str = ""
    dtype: str = "bfloat16"
    state: str = "model"  # of the moments: model, float32, 8bit
    in_backward: bool = False
    offload_state: bool = False
    recomputed: int = 0  # layers
    offload_activations: bool = False
    rank: int | None = None  # of adapters on frozen weights
    quantized: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def one_pass(self) -> bool:
        """Whether gradients of one layer at a time take a step of a single packed pass.

        With the moments in host memory, those of several passes add up there.
        """
        return self.in_backward and not self.offload_state

    @property
    def state_bytes(self) -> float:
        """Bytes of both moments of a weight."""
        own = 2 * (self.torch_dtype.itemsize if self.rank is None else self.adapter_item)
        return {"model": own, "float32": 8.0, "8bit": EIGHT_BIT_BYTES}[self.state]

    @property
    def adapter_item(self) -> int:
        """Bytes of an adapter's weight: float32, as peft makes them."""
        return 4

    def trained(self, shape: Shape) -> int:
        """How many weights have a gradient."""
        if self.rank is None:
            return shape.parameters
        h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
        return shape.layers * self.rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + i))

    def weight_bytes(self, shape: Shape) -> float:
        """Bytes of all weights, adapters too; with the one matrix dequantised at a time."""
        item = self.torch_dtype.itemsize
        blocks = shape.block_parameters * (NF4_BYTES if self.quantized else item)
        adapters = 0 if self.rank is None else self.trained(shape) * self.adapter_item
        if self.quantized:
            blocks += shape.hidden * shape.intermediate * item
        return blocks + (shape.parameters - shape.block_parameters) * item + adapters

    def gradient_bytes(self, shape: Shape) -> int:
        """Bytes of all gradients together."""
        return self.trained(shape) * (
            self.torch_dtype.itemsize if self.rank is None else self.adapter_item
        )

    def host_bytes(self, shape: Shape, kept: float, passes: int) -> float:
        """Bytes of host memory: of moments, sums of gradients, layers' inputs, if kept there."""
        held = self.trained(shape) * self.state_bytes if self.offload_state else 0.0
        if self.in_backward and self.offload_state and passes > 1:
            held += self.gradient_bytes(shape)
        return held + (kept if self.offload_activations else 0.0)


# From the fastest and least changed to the leanest, all in bfloat16. "on host": the moments in host
# memory; "in backward": each weight is updated inside the backward pass
FULL_32 = Mode("AdamW, 32-bit", state="float32")
FULL_8 = replace(FULL_32, name="AdamW, 8-bit", state="8bit")
FULL_HOST = replace(FULL_8, name="AdamW, 8-bit, on host", offload_state=True)
FUSED = replace(FULL_8, name="AdamW, 8-bit, in backward", in_backward=True)
FUSED_HOST = replace(FUSED, name="AdamW, 8-bit, in backward, on host", offload_state=True)
LORA = Mode("LoRA, rank 16", state="model", rank=16)
QLORA = replace(LORA, name="QLoRA, rank 16", quantized=True)
LADDER = (FULL_32, FULL_8, FULL_HOST, FUSED, FUSED_HOST, LORA, QLORA)

CONFIGURED = "as configured"

# option → its value in a mode; None: left out
OPTIONS: dict[str, Any] = {
    "model.dtype": lambda m, n: m.dtype,
    "model.lora": lambda m, n: {"r": m.rank} if m.rank else None,
    "model.quantization": lambda m, n: "nf4" if m.quantized else None,
    "training.optimizer_state": lambda m, n: None if m.state == "model" else m.state,
    "training.stochastic_rounding": lambda m, n: (
        True if m.rank is None and m.dtype == "bfloat16" and m.state != "model" else None
    ),
    "training.optimizer_in_backward": lambda m, n: m.in_backward or None,
    "training.max_grad_norm": lambda m, n: 0 if m.in_backward else None,
    "training.optimizer_offload": lambda m, n: m.offload_state or None,
    "training.gradient_checkpointing": lambda m, n: True if m.recomputed == n else None,
    "training.activation_memory": lambda m, n: "auto" if 0 < m.recomputed < n else None,
    "training.offload_activations": lambda m, n: m.offload_activations or None,
}


def options(mode: Mode, layers: int) -> dict[str, Any]:
    """Dotted name → value of what this mode sets."""
    values = {name: value(mode, layers) for name, value in OPTIONS.items()}
    return {name: value for name, value in values.items() if value is not None}


def mode_of(config: Config, layers: int, recomputed: int | None = None) -> Mode:
    """The mode of a configuration. `recomputed`: layers, where `activation_memory` decides."""
    lora = config.model.lora
    return Mode(
        CONFIGURED,
        dtype=config.model.dtype,
        state=config.training.optimizer_state,
        in_backward=config.training.optimizer_in_backward,
        offload_state=config.training.optimizer_offload,
        recomputed=recomputed or (layers if config.training.gradient_checkpointing else 0),
        offload_activations=config.training.offload_activations,
        rank=lora.r if lora else None,
        quantized=config.model.quantization != "none",
    )
