"""`oracle:`, who says which of two responses is better: a class an oracle.

Its code is `comal_fast/oracles/NAME.py`; a plugin brings both (`comal_fast.oracles.register`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from comal_fast.config.choice import Choice
from comal_fast.config.model import Dtype
from comal_fast.config.options import Options, how

ORACLE_CHOICE = Choice("name", "oracle", default="criteria")
PRESETS = ("plain", "offsetbias")  # templates that come along (oracles/templates)
Criterion = Literal["complete", "answers", "brief", "says_something", "varied", "direct"]


class OracleConfig(Options):
    """Who says which of two responses is better."""

    name: str
    """Which oracle judges."""


@ORACLE_CHOICE.register
class NoneConfig(OracleConfig):
    """Nobody judges: there are no win rates. For `data.pairs`."""

    name: Literal["none"] = "none"
    """Nobody judges; with `data.pairs` the default."""


@ORACLE_CHOICE.register
class CriteriaConfig(OracleConfig):
    """A weighted mixture of written-down criteria, intransitive as people are."""

    name: Literal["criteria"] = "criteria"
    """A weighted mixture of written-down criteria."""
    weights: dict[Criterion, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Weight of each criterion (they need not sum to 1); empty: the oracle's own."""
    temperatures: dict[Criterion, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Temperature of a criterion's sigmoid; a criterion left out keeps its own."""
    target_words: int = Field(40, ge=1)
    """The length up to which a response counts as brief."""

    @model_validator(mode="after")
    def _some_weight(self) -> CriteriaConfig:
        if self.weights and sum(self.weights.values()) <= 0:
            raise ValueError("oracle.weights: all are zero; at least one must be positive")
        return self


@ORACLE_CHOICE.register
class MatrixConfig(OracleConfig):
    """A given preference matrix over known responses."""

    name: Literal["matrix"] = "matrix"
    """A given preference matrix over known responses."""
    game: str
    """JSON file `{"matrix": [[…]], "names": […]}`; the names are the responses. Or a `.jsonl` file
    of a game a prompt, such rows with the `prompt` in them."""
    unknown_wins: float = Field(0.0, ge=0, le=0.5)
    """P(any other response ≻ a known one); two others draw."""


class AskingConfig(OracleConfig):
    """An oracle whose answers are kept."""

    cache: str | None = how("auto", min_length=1)
    """SQLite file of its answers, so that nothing is asked twice: `auto` is `oracle_cache.sqlite`
    in the run directory; runs on one machine may share one. None: nothing is kept."""

    @field_validator("cache")
    @classmethod
    def _whole_cache(cls, cache: str | None) -> str | None:
        """A run is read from other folders too."""
        return cache if cache in ("auto", None) else str(Path(cache or "").expanduser().resolve())


class JudgeConfig(AskingConfig):
    """An oracle that is a model, run here."""

    model: str
    """Hub name, local folder, or `package:NAME` for weights inside an installed Python package."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "bfloat16"
    """Dtype of weights and activations."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`; `auto` takes CUDA where there is one."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4`: the weights in 4 bits, all but embeddings and head, by bitsandbytes."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """By what the difference of two scores is divided."""
    max_length: int = Field(4096, ge=2)
    """Most tokens that the model is given at once; more are an error, never cut."""
    batch_size: int = Field(64, ge=1)
    """Responses (judges of pairs: ordered pairs) that are asked about together; what is kept of
    them is kept together."""
    max_tokens_per_batch: int = Field(16384, ge=1)
    """Token budget of one pass, a prompt counted once for all responses in it."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the model. Needed by some, ArmoRM among them."""
    pickled_weights: bool = how(False)
    """Read `pytorch_model.bin` where there are no safetensors: a pickle, read for its tensors
    alone (torch's `weights_only`)."""

    @field_validator("model")
    @classmethod
    def _whole_folder(cls, model: str) -> str:
        """A run is read from other folders too, where a hub may have another model of the name."""
        folder = Path(model).expanduser()
        return str(folder.resolve()) if folder.is_dir() else model


@ORACLE_CHOICE.register
class BradleyTerryConfig(JudgeConfig):
    """A sequence-classification reward model: P(y ≻ y') = σ((r(y) − r(y')) / temperature)."""

    name: Literal["bradley_terry"] = "bradley_terry"
    """A reward model (sequence classification), P = σ of the rewards' difference."""
    score: str = Field("logits", min_length=1)
    """What the reward is: `logits`, the head's only logit, or the name of another output of the
    model, one number a conversation (`score` of ArmoRM)."""


@ORACLE_CHOICE.register
class GeneralPreferenceConfig(JudgeConfig):
    """A general preference model (GPM, arXiv 2410.02197): a vector a response, and a score of two
    that turns its sign with their order, so that preferences may run in a circle."""

    name: Literal["general_preference"] = "general_preference"
    """A general preference model (GPM): vectors and a skew-symmetric score, K passes for K²
    pairs."""
    temperature: float = Field(0.1, gt=0, allow_inf_nan=False)
    """By what the score of two vectors is divided (the paper's τ)."""
    normalize: bool = True
    """Vectors of length one, as published models are trained."""
    special_tokens: bool = False
    """Whether the tokenizer adds its special tokens to those that the chat template wrote: a second
    beginning of text, which published models were trained with where their tokenizer adds one."""


class QuestionConfig(AskingConfig):
    """An oracle that is shown two responses in words, and names one of them."""

    template: str = "plain"
    """What it is asked: `plain`, `offsetbias` (the COMAL authors' judge), or a text file with
    {response_a}, {response_b}, and {conversation} or {prompt} (the last user message alone)."""
    criteria: str | None = None
    """Text for {criteria} in the template."""
    labels: list[str] | None = Field(None, min_length=2, max_length=2)
    """What it says for the first response and for the second, a token each; None: the template's
    own, of a file A and B."""
    answer: str | None = None
    """How its answer begins, up to the label; None: the template's own, of a file nothing."""

    @field_validator("template")
    @classmethod
    def _whole_path(cls, template: str) -> str:
        """A run is read from other folders too."""
        if template in PRESETS:
            return template
        return str(Path(template).expanduser().resolve())


@ORACLE_CHOICE.register
class PairwiseLmConfig(QuestionConfig, JudgeConfig):
    """A language model that is shown two responses and asked which is better: P from the next
    token's probabilities of two labels, both orders averaged."""

    name: Literal["pairwise_lm"] = "pairwise_lm"
    """A language model that is asked which of two is better, in both orders."""
    gguf_file: str | None = None
    """File with the weights inside `model`, when they are GGUF."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """By what the logits of the two labels are divided."""


@ORACLE_CHOICE.register
class PairwiseClassifierConfig(JudgeConfig):
    """A cross-encoder over (prompt, first response, second response), both orders averaged."""

    name: Literal["pairwise_classifier"] = "pairwise_classifier"
    """A cross-encoder over the prompt and two responses (PairRM and its kind)."""
    max_length: int = Field(2048, ge=2)
    """Most tokens of prompt and both responses; more are an error, never cut."""


@ORACLE_CHOICE.register
class EndpointConfig(QuestionConfig):
    """A language model behind an OpenAI-compatible server, asked which of two is better: P from the
    log-probs of two labels or from sampled verdicts, both orders averaged."""

    name: Literal["endpoint"] = "endpoint"
    """A language model behind an OpenAI-compatible server."""
    base_url: str
    """Where `/chat/completions` is, such as `http://localhost:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is written nowhere."""
    ask: Literal["auto", "logprobs", "verdicts"] = "auto"
    """How P is got: from the `logprobs` of the labels, or from sampled `verdicts`; `auto`: from
    log-probs where the server gives them."""
    verdicts: int = Field(8, ge=1)
    """Answers that are sampled for an ordered pair where there are no log-probs."""
    temperature: float = Field(1.0, gt=0, le=2)
    """Of the two labels' probabilities, and of sampled answers."""
    max_answer_tokens: int = Field(16, ge=1)
    """Most tokens of an answer; the label must be among them."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, `{chat_template_kwargs: {enable_thinking: false}}` say."""
    max_concurrency: int = how(16, ge=1)
    """Requests under way at once."""
    timeout: float = how(120.0, gt=0, allow_inf_nan=False)
    """Seconds that one request may take in all."""
    max_retries: int = how(6, ge=0)
    """How often a request is sent again that met a full or failing server, waiting longer each
    time."""
    max_requests: int | None = how(None, ge=1)
    """Most requests, counted in the file of answers, over all runs that share it (without a file:
    of one phase); when they are spent the run stops, and goes on once this is raised. None: no
    limit."""
    max_tokens: int | None = how(None, ge=1)
    """Most tokens, of questions and answers, counted likewise; what is under way is waited for."""

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, base_url: str) -> str:
        """Without a key in it: it is written down."""
        try:
            url = urlsplit(base_url)
            good = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:  # of a port
            good = False
        if "@" in base_url.partition("://")[2].partition("/")[0] or "?" in base_url:
            raise ValueError(
                "oracle.base_url: a name, password or query in it would be written down; name an "
                "environment variable by oracle.api_key_env"
            )
        if not good:
            raise ValueError(
                f"oracle.base_url: {base_url!r} is no address such as http://localhost:8000/v1"
            )
        return base_url.rstrip("/")


@ORACLE_CHOICE.register
class PythonConfig(AskingConfig):
    """A function of your own, called with a list of `Comparison`."""

    name: Literal["python"] = "python"
    """A function of your own, called with a list of `Comparison`."""
    function: str
    """`file.py:name` or `package.module:name`."""
    returns: Literal["probabilities", "scores"] = "probabilities"
    """Of each comparison: `probabilities`, one (len(left), len(right)) matrix of P(left ≻ right);
    `scores`, a score of each response, those of `left` and then those of `right`, of which
    P = σ(difference / temperature)."""
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of `scores` (None: 1); probabilities have none."""
    both_orders: bool = False
    """Whether the function heeds which response comes first: it is asked in both orders then, and
    the mean is taken. For probabilities."""
    batch_size: int = Field(64, ge=1)
    """Comparisons that one call is given."""

    @field_validator("function")
    @classmethod
    def _whole_path(cls, function: str) -> str:
        """A run is read from other folders too."""
        place, colon, name = function.rpartition(":")
        if not (colon and place and name.isidentifier()):
            raise ValueError(
                f"oracle.function: {function!r} is neither file.py:name nor package.module:name"
            )
        file = place.endswith(".py")
        return f"{Path(place).expanduser().resolve()}:{name}" if file else function

    @model_validator(mode="after")
    def _reads(self) -> PythonConfig:
        if self.returns == "probabilities" and self.temperature is not None:
            raise ValueError("oracle.temperature: probabilities have none; it goes with scores")
        if self.returns == "scores" and self.both_orders:
            raise ValueError("oracle.both_orders: scores have no order; leave it out")
        return self


@ORACLE_CHOICE.register
class MixtureConfig(OracleConfig):
    """Members of any kind, whose probabilities are mixed."""

    name: Literal["mixture"] = "mixture"
    """Members of any kind, whose probabilities are mixed, never their scores."""
    members: list[Annotated[OracleConfig, ORACLE_CHOICE]] = Field(min_length=1)
    """Oracles, each with options of its own."""
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    """Weight of each member (they need not sum to 1); None: all alike."""

    @model_validator(mode="after")
    def _a_weight_each(self) -> MixtureConfig:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(
                f"oracle.weights: {len(self.weights)} for {len(self.members)} members; give each "
                "member one"
            )
        return self


MixtureConfig.model_rebuild(force=True)  # a member may be a mixture too
