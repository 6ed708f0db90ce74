"""The configuration tree: frozen dataclasses, one docstring under each field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Prox = Literal["inpo", "ipo", "dpo", "sppo", "dro", "rebel"]
Strategy = Literal["best_worst", "best_second", "all"]
Dtype = Literal["float32", "bfloat16", "float16"]
Backend = Literal["auto", "torch", "triton"]
OptimizerState = Literal["model", "float32", "8bit"]
Attention = Literal["auto", "flash_attention_2", "torch_varlen", "flex_attention", "sdpa"]
Action = Literal["off", "warn", "stop", "rollback"]


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on frozen weights (arXiv 2106.09685), by peft."""

    r: int = 16
    """Rank of an adapter."""
    alpha: int = 32
    """Adapters count alpha/r times."""
    dropout: float = 0.0
    """Dropout of what enters an adapter, in training alone."""
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the linear layers that get one, such as `[q_proj, v_proj]`; `all-linear`: every one
    but the head, which is never adapted."""
    use_rslora: bool = False
    """alpha/√r instead of alpha/r (arXiv 2312.03732)."""


@dataclass(frozen=True)
class ModelConfig:
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
    """Attention over packed sequences. `auto`: on CUDA the first of flash-attn where it is
    installed, torch's `varlen_attn` and FlexAttention that can run the model exactly; on a CPU
    SDPA, a call per sequence. The first two take bfloat16 and float16, torch's no soft-capping."""
    lora: LoraConfig | None = None
    """Train adapters on the frozen weights; `{}` takes the defaults. None: train the weights."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4`: the frozen weights in 4 bits, all but embeddings and head (QLoRA, arXiv 2305.14314).
    Needs `model.lora`."""
    liger_kernels: Literal["auto", "on", "off"] = "auto"
    """Liger's kernels for norms, positions and gated MLPs: `auto` takes them on CUDA where
    liger-kernel is installed and knows the model."""


@dataclass(frozen=True)
class DataConfig:
    """Prompts, and which of them each iteration visits."""

    prompts: str = "builtin"
    """JSONL or parquet file, hub dataset name, or `builtin` (420 prompts of the package)."""
    split: str = "train"
    """Split of a hub dataset."""
    prompts_per_iteration: int | None = None
    """Training prompts of one iteration: consecutive slices of a seeded order. None: all."""
    eval_prompts: int = 64
    """Held-out prompts, never trained on."""
    max_length: int = 2048
    """Most tokens of prompt and response together. A prompt too long for it is an error."""
    max_prompt_length: int | None = None
    """Prompts with more tokens are left out, and counted. None: none is left out."""
    system_prompt: str | None = None
    """System message before every prompt. None: what the chat template does by itself."""


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling from the current policy."""

    engine: Literal["transformers"] = "transformers"
    """What generates."""
    num_generations: int = 5
    """K, responses per prompt (at least 2)."""
    max_new_tokens: int = 1024
    """Longest response, in tokens."""
    temperature: float = 1.0
    """Softmax temperature."""
    top_p: float = 1.0
    """Nucleus: 1 samples from the whole vocabulary."""
    batch_size: int = 32
    """Responses generated together."""


@dataclass(frozen=True)
class OracleConfig:
    """Who says which of two responses is better."""

    name: Literal["criteria", "matrix"] = "criteria"
    """`criteria`: a weighted mixture of written-down criteria. `matrix`: a given preference matrix
    over known responses."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each criterion (they need not sum to 1); empty: the oracle's own."""
    temperatures: dict[str, float] = field(default_factory=dict)
    """Temperature of a criterion's sigmoid; a criterion left out keeps its own."""
    target_words: int = 40
    """`criteria`: the length up to which a response counts as brief."""
    game: str | None = None
    """`matrix`: JSON file `{"matrix": [[…]], "names": […]}`; the names are the responses."""
    unknown_wins: float = 0.0
    """`matrix`: P(any other response ≻ a known one), in [0, ½]; two others draw."""


@dataclass(frozen=True)
class PairingConfig:
    """Which of the judged responses become preference pairs."""

    strategy: Strategy = "best_worst"
    """By mean win rate: best against worst, best against second, or all pairs."""
    soft_labels: bool = False
    """Train on P(chosen ≻ rejected), undecided pairs too, instead of on the hard label 1."""


@dataclass(frozen=True)
class AlgorithmConfig:
    """The outer loop and its prox operator."""

    prox: Prox = "inpo"
    """The prox loss of the inner solver: inpo, ipo, dpo compare pairs by their preference; rebel by
    their rewards; sppo and dro train on every judged response alone."""
    eta: float = 0.002
    """KL coefficient η, the inverse step of mirror descent (all but dpo)."""
    tau_eta_ratio: float = 1 / 3
    """τ/η in [0, 1]: the pull of the reference policy (inpo, sppo, dro, rebel). The last three step
    from π_t along r(y) = P(y ≻ π_t) − τ log(π_t/π_ref)(y); 0 is the sppo and rebel of their papers,
    1 anchors at the reference alone, as the papers of ipo and dro do."""
    log_z: Literal["zero", "samples"] = "zero"
    """log Z of sppo: 0 as in its paper, or log mean exp((r − ½)/η) over the samples of a prompt."""
    beta: float = 0.1
    """KL coefficient of dpo."""
    label_smoothing: float = 0.0
    """Share of flipped labels that dpo assumes, in [0, 0.5)."""
    iterations: int = 18
    """Iterations: each samples, judges and trains once."""
    ref_update_interval: int = 12
    """The reference becomes the current policy every so many iterations."""


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser of one iteration (AdamW, linear warm-up and decay)."""

    learning_rate: float = 5e-7
    """Peak learning rate."""
    warmup_ratio: float = 0.1
    """Share of the steps that warm up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0: never."""
    optimizer_state: OptimizerState = "model"
    """AdamW's two moments: in the dtype of the weights, in float32 (8 bytes per parameter), or in 8
    bits (2 bytes; needs bitsandbytes)."""
    stochastic_rounding: bool = False
    """bfloat16 weights: round each update up or down at random, so that none is lost on average."""
    optimizer_in_backward: bool = False
    """Update each weight inside the backward pass and free its gradient at once. Of several
    micro-batches in the last, so memory is saved where `max_tokens_per_microbatch` holds a whole
    step, or with `optimizer_offload`. Gradients can't be clipped."""
    optimizer_offload: bool = False
    """Keep the moments in host memory, copied to the GPU and back beside the backward pass; with
    `optimizer_in_backward` the sums of the micro-batches' gradients too."""
    num_train_epochs: int = 3
    """Passes over the iteration's pairs (sppo, dro: responses)."""
    train_batch_size: int = 32
    """Distinct pairs of an optimiser step (sppo, dro: responses; dro keeps a prompt's together)."""
    max_tokens_per_microbatch: int = 16384
    """Token budget of one packed forward and backward pass, a prompt counted once for all of its
    responses; pairs, and dro's responses to one prompt, are never split."""
    shuffle: Literal["items", "prompts"] = "items"
    """What is shuffled in an epoch: single pairs (sppo, dro: responses), or prompts, whose pairs
    then come in one step: prompt and responses are run once for all of them, but steps are less
    mixed."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every layer in the backward pass."""
    activation_memory: str | None = None
    """Most memory, such as `8GiB`, that layers keep for the backward pass: the least number of
    layers that this asks for recompute theirs. `auto`: what a GPU has left. None: no limit."""
    offload_activations: bool = False
    """Hold the inputs of recomputed layers in host memory until the backward pass."""
    backend: Backend = "auto"
    """Kernels of the prox loss."""
    save_steps: int = 100
    """Optimiser steps between checkpoints inside an iteration; 0: none."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Win rates on held-out prompts."""

    num_generations: int = 1
    """Fresh samples per held-out prompt and iterate."""
    interval: int = 1
    """Evaluate every so many iterations (and the initial policy, and the last iterate)."""
    bootstrap: int = 10_000
    """Bootstrap resamples of the prompts for the 95 % intervals."""


@dataclass(frozen=True)
class DiagnosticsConfig:
    """Signs of a failing run, looked for after every iteration, and what is done about each.

    `warn` goes on; `stop` ends the run, with this iterate as its result; `rollback` ends it with
    the iterate before as its result (nothing is deleted); `off` does not look.
    """

    divergence: Action = "stop"
    """NaN or Inf, or a gradient norm or log-ratio out of bounds."""
    degradation: Action = "warn"
    """The iterate loses to an earlier one: the interval of the win rate lies under 50 %."""
    cycling: Action = "warn"
    """The policy went away, came back to an earlier iterate, and does not beat it."""
    slow_convergence: Action = "warn"
    """Over `slow_window` iterations the policy neither moved nor gained."""
    reference_drift: Action = "warn"
    """KL to the reference above `max_kl_to_reference`."""
    inner_accuracy: Action = "warn"
    """The inner problem is solved less accurately than the theory's c₁/(9t⁴), provably so."""
    max_grad_norm_growth: float = 10.0
    """divergence: highest gradient norm (median of 5 steps) over that of the first 5 steps."""
    max_log_ratio: float = 10.0
    """divergence: largest mean log-ratio to the anchor in training, nats per token."""
    cycling_return: float = 0.5
    """cycling: how near is back, as a share of the distance that the policy had gone."""
    probe_responses: int = 16
    """cycling: responses of the initial policy on whose log-probs distances are measured."""
    slow_window: int = 3
    """slow_convergence: how many iterations it looks back."""
    slow_kl: float = 0.1
    """slow_convergence: least change of KL to the initial policy, nats per response, iteration."""
    slow_win_rate: float = 0.005
    """slow_convergence: least gain of win rate per iteration over the iterate looked back to."""
    max_kl_to_reference: float = 1.0
    """reference_drift: nats per token."""
    inner_c1: float = 1.0
    """inner_accuracy: c₁ of the budget; the theory's own depends on the unknown Nash policy."""


@dataclass(frozen=True)
class Config:
    """One run."""

    model: ModelConfig
    output_dir: str = "runs/comal"
    """The run directory."""
    seed: int = 0
    """Seed of everything random."""
    phases: Literal["auto", "inline", "process"] = "auto"
    """`process`: every phase of `run` in a process of its own, whose memory is free when it ends;
    `auto` does so on CUDA. Under torchrun they are inline."""
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    oracle: OracleConfig = field(default_factory=OracleConfig)
    pairing: PairingConfig = field(default_factory=PairingConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
