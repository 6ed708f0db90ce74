"""`training:`, the optimiser of one iteration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from comal_fast.config.options import Options, how

Backend = Literal["auto", "torch", "triton"]
OptimizerState = Literal["model", "float32", "8bit"]


class TrainingConfig(Options):
    """The optimiser of one iteration (AdamW, linear warm-up and decay)."""

    learning_rate: float = Field(5e-7, gt=0)
    """Peak learning rate."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Global gradient norm above which gradients are scaled down; 0: never."""
    max_skipped_steps: int = Field(0, ge=0)
    """Most steps of an iteration that are left out because their gradient is NaN or infinite; one
    more stops the run (`diagnostics.divergence: rollback` ends it with the iterate before)."""
    optimizer_state: OptimizerState = "model"
    """AdamW's two moments: in the dtype of the weights, in float32 (8 bytes per parameter), or in 8
    bits (2 bytes; on a CPU it needs bitsandbytes)."""
    stochastic_rounding: bool = False
    """bfloat16 weights: round each update up or down at random, so that none is lost on average."""
    optimizer_in_backward: bool = how(False)
    """Update each weight inside the backward pass and free its gradient at once. Of several
    micro-batches in the last, so memory is saved where `max_tokens_per_microbatch` holds a whole
    step, or with `optimizer_offload`. Gradients can't be clipped."""
    optimizer_offload: bool = how(False)
    """Keep the moments in host memory, copied to the GPU and back beside the backward pass; with
    `optimizer_in_backward` the sums of the micro-batches' gradients too."""
    num_train_epochs: int = Field(3, ge=1)
    """Passes over the iteration's pairs (sppo, dro: responses)."""
    train_batch_size: int = Field(32, ge=1)
    """Distinct pairs of an optimiser step (sppo, dro: responses; dro keeps a prompt's together)."""
    max_tokens_per_microbatch: int = Field(16384, ge=1)
    """Token budget of one packed forward and backward pass, a prompt counted once for all of its
    responses; pairs, and dro's responses to one prompt, are never split."""
    shuffle: Literal["items", "prompts"] = "items"
    """What is shuffled in an epoch: single pairs (sppo, dro: responses), or prompts, whose pairs
    then come in one step: prompt and responses are run once for all of them, but steps are less
    mixed."""
    gradient_checkpointing: bool = how(False)
    """Recompute the activations of every layer in the backward pass."""
    activation_memory: str | None = how(None)
    """Most memory, such as `8GiB`, that layers keep for the backward pass: the least number of
    layers that this asks for recompute theirs. `auto`: what a GPU has left. None: no limit."""
    offload_activations: bool = how(False)
    """Hold the inputs of recomputed layers in host memory until the backward pass."""
    backend: Backend = "auto"
    """Kernels of the prox loss."""
    save_steps: int = how(100, ge=0)
    """Optimiser steps between checkpoints inside an iteration; 0: none."""
    save_minutes: float = how(30.0, ge=0)
    """Minutes after which a checkpoint is written too, whatever the steps; 0: never."""
    deterministic: bool = how(False)
    """On a GPU too sums are made in one order, so that a run that was killed ends in the same bits;
    slower. A CPU's always are."""
    keep_checkpoints: int = how(1, ge=1)
    """How many checkpoints of an iteration are kept, the newest; gone when it is trained."""
