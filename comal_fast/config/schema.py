"""The configuration tree. A group of many options has a file of its own."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError, model_validator

from comal_fast.config.algorithm import (
    LABELS,
    PROX_CHOICE,
    TARGET,
    AlgorithmConfig,
    InpoConfig,
)
from comal_fast.config.diagnostics import DiagnosticsConfig
from comal_fast.config.generation import ENGINE_CHOICE, GenerationConfig, TransformersConfig
from comal_fast.config.messages import one_line
from comal_fast.config.model import LoraConfig, ModelConfig
from comal_fast.config.options import Options, as_meant, check_text, how
from comal_fast.config.oracle import (
    ORACLE_CHOICE,
    CriteriaConfig,
    MatrixConfig,
    MixtureConfig,
    OracleConfig,
)
from comal_fast.config.plugins import find_plugins, load_plugins
from comal_fast.config.training import TrainingConfig
from comal_fast.errors import InputError

__all__ = [
    "CHOICES",
    "AlgorithmConfig",
    "Config",
    "CriteriaConfig",
    "DataConfig",
    "DiagnosticsConfig",
    "EvaluationConfig",
    "GenerationConfig",
    "LoraConfig",
    "MatrixConfig",
    "ModelConfig",
    "OracleConfig",
    "PairingConfig",
    "TrainingConfig",
    "build",
    "current",
]
CHOICES = {"algorithm": PROX_CHOICE, "oracle": ORACLE_CHOICE, "generation": ENGINE_CHOICE}


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"data.template_date: {text!r} is no day; write 2024-07-26") from None


class DataConfig(Options):
    """Prompts, and which of them each iteration visits."""

    prompts: str = "builtin"
    """JSON, CSV, TSV or parquet file, a folder of such, hub dataset name, or `builtin` (420 prompts
    of the package). JSON: a row a line, or one array. `.gz` and `.zst` too."""
    pairs: str | None = Field(None, min_length=1)
    """Pairs that people judged, in place of `prompts`, sampling and judging: files as `prompts`, of
    TRL's preference format. One iteration, whose reference is the initial policy."""
    split: str = "train"
    """Split of a hub dataset, or of a folder whose files are named by split."""
    prompts_per_iteration: int | None = Field(None, ge=1)
    """Training prompts of one iteration: consecutive slices of a seeded order. None: all."""
    eval_prompts: int = Field(64, ge=2)
    """Held-out prompts, never trained on; of `pairs` the prompts whose pairs are held out."""
    max_length: int = Field(2048, ge=2)
    """Most tokens of prompt and response together. A prompt too long for it is an error; pairs are
    left out, and counted."""
    max_prompt_length: int | None = Field(None, ge=1)
    """Prompts with more tokens are left out, and counted. None: none is left out."""
    system_prompt: str | None = None
    """System message before every prompt. None: what the chat template does by itself."""
    chat_template_kwargs: dict[str, JsonValue] | None = None
    """Variables of the chat template, such as `enable_thinking: false`; a row's own field of this
    name goes before them."""
    template_date: Annotated[str, AfterValidator(_day)] = "2024-07-26"
    """What a chat template is told that asks for today's date, YYYY-MM-DD: fixed, so that a prompt
    is the same tokens on every day."""


class PairingConfig(Options):
    """Which of the judged responses become preference pairs, and what they are regressed on."""

    strategy: Literal["best_worst", "best_second", "all"] = "all"
    """By mean win rate: best against worst, best against second, or all pairs."""
    labels: Literal["soft", "sampled", "hard"] = "soft"
    """What a judged pair counts as: `soft`, P(chosen ≻ rejected); `sampled`, a win or a loss drawn
    with that probability; `hard`, a win of whichever is preferred, which trains for the game of
    the majority instead of P's own. Saved as `soft_labels: true` or `false` by older versions."""
    target: Literal["auto", "label", "win_rate", "cross_fit"] = "auto"
    """What a pair is regressed on: its own `label`; `win_rate`, the difference of its responses'
    win rates over all samples; `cross_fit`, pairs within each half of the samples, win rates
    against the other half. `auto`: label (rebel: win_rate) where all pairs are trained on, else
    cross_fit, so that the fixed point stays the Nash policy of P; dpo takes label alone."""


class EvaluationConfig(Options):
    """Win rates on held-out prompts."""

    num_generations: int = Field(1, ge=1)
    """Fresh samples per held-out prompt and iterate."""
    interval: int = Field(1, ge=1)
    """Evaluate every so many iterations (and the initial policy, and the last iterate)."""
    bootstrap: int = Field(10_000, ge=100)
    """Random draws behind what has no closed form: the bounds of the best opponent (`compare`, the
    report, a sweep). Win rates, KLs, margins and diagnostics need none."""
    report: bool = how(True)
    """End `run` with report.html; `comal-fast report` writes it at any time."""


class Config(Options):
    """One run."""

    model: ModelConfig
    """The policy that is aligned."""
    output_dir: str = how("runs/comal", min_length=1)
    """The run directory."""
    seed: int = Field(0, ge=0)
    """Seed of everything random."""
    phases: Literal["auto", "inline", "process"] = how("auto")
    """`process`: every phase of `run` in a process of its own, whose memory is free when it ends;
    `auto` does so on CUDA. Under torchrun they are inline."""
    logging: list[Literal["csv", "mlflow", "tensorboard", "trackio", "wandb"]] = how([])
    """Log sinks that are told every row of metrics.jsonl, and configuration, sample tables, plots
    and report. docs/logging.md says where each keeps them."""
    plugins: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Python files, or modules, that are imported first: they register prox losses, oracles, log
    sinks. A changed file makes anew what its losses and oracles made."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Prompts, and which of them each iteration visits."""
    generation: Annotated[GenerationConfig, ENGINE_CHOICE] = Field(
        default_factory=TransformersConfig
    )
    """Sampling from the current policy."""
    oracle: Annotated[OracleConfig, ORACLE_CHOICE] = Field(default_factory=CriteriaConfig)
    """Who says which of two responses is better."""
    pairing: PairingConfig = Field(default_factory=PairingConfig)
    """Which of the judged responses become preference pairs."""
    algorithm: Annotated[AlgorithmConfig, PROX_CHOICE] = Field(default_factory=InpoConfig)
    """The outer loop and its prox operator."""
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    """The optimiser of one iteration."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Win rates on held-out prompts."""
    diagnostics: DiagnosticsConfig = Field(default_factory=DiagnosticsConfig)
    """Signs of a failing run, and what is done about each."""

    @model_validator(mode="before")
    @classmethod
    def _given_pairs(cls, given: Any) -> Any:
        """With `data.pairs` there is one iteration, and nobody need judge."""
        data = given.get("data") if isinstance(given, dict) else None
        if not isinstance(data, dict) or data.get("pairs") is None:
            return given
        algorithm = given.get("algorithm", {})
        if isinstance(algorithm, dict):
            algorithm = {"iterations": 1, **algorithm}
        return {"oracle": {"name": "none"}, **given, "algorithm": algorithm}

    @model_validator(mode="before")
    @classmethod
    def _older_labels(cls, given: Any) -> Any:
        """Read `pairing.soft_labels`, the spelling of older versions, which knew one target."""
        pairing = given.get("pairing") if isinstance(given, dict) else None
        if not isinstance(pairing, dict) or "soft_labels" not in pairing:
            return given
        soft = pairing["soft_labels"]
        if not isinstance(soft, bool):
            raise ValueError("pairing.soft_labels: expected true or false, or give pairing.labels")
        if "labels" in pairing:
            raise ValueError(
                "pairing.soft_labels: the older spelling of pairing.labels, which is given too; "
                "leave it out"
            )
        algorithm, data = given.get("algorithm"), given.get("data")
        name = algorithm.get("prox", "inpo") if isinstance(algorithm, dict) else "inpo"
        prox = PROX_CHOICE.find(name) or InpoConfig
        assert issubclass(prox, AlgorithmConfig)
        meant: dict[str, Any] = {}
        if LABELS in prox.pairing and not (soft or prox.targets[0] == "win_rate"):
            meant["labels"] = "hard"
        judged = isinstance(data, dict) and data.get("pairs") is not None
        if TARGET in prox.pairing and not judged:
            meant["target"] = prox.targets[0]
        rest = {name: value for name, value in pairing.items() if name != "soft_labels"}
        return {**given, "pairing": meant | rest}

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: its plugins are imported there before the tree is built anew."""
        return build, (self.model_dump(),)


def current() -> type[Config]:
    """`Config`, which knows every variant that is registered by now."""
    if any(choice.stale for choice in CHOICES.values()):
        MixtureConfig.model_rebuild(force=True)  # its members are a choice too
        Config.model_rebuild(force=True)
    return Config


def build(tree: dict[str, Any]) -> Config:
    """The checked tree, its plugins imported; cross-group rules are `validate`'s."""
    check_text(tree)
    plugins = find_plugins(as_meant(list[str], tree.get("plugins")) or [])
    load_plugins(plugins)
    tree = tree | {"plugins": plugins}  # a run is read from other folders too
    for group, choice in CHOICES.items():  # a loss of comal_kernels alone is looked up by its name
        options = tree.get(group)
        if isinstance(options, dict):
            choice.find(options.get(choice.tag))
    schema = current()
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise InputError(one_line(error, schema)) from None
