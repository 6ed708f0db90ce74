"""`algorithm:`, the outer loop and its prox operator: a class a prox, with the options it reads.

A loss that is only in `comal_kernels.PROX`, a plugin's say, gets its class from its row there.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, create_model

from comal_fast.config.choice import Choice
from comal_fast.config.options import Options

PROX_CHOICE = Choice("prox", "prox", default="inpo")
# of `pairing:`, what a loss of pairs reads
STRATEGY, LABELS, TARGET = "pairing.strategy", "pairing.labels", "pairing.target"
PAIRING = (LABELS, STRATEGY, TARGET)


# of Regularised, beyond the mirror step, and the methods that read each
PAST = {
    "method": ("onpo", "mnpo", "heavy_ball"),
    "history": ("onpo", "mnpo"),
    "momentum": ("heavy_ball",),
}


def _method_name(name: Any) -> Any:
    """Read the name that older versions gave to heavy_ball."""
    return "heavy_ball" if name == "apo" else name


class AlgorithmConfig(Options):
    """The outer loop and its prox operator."""

    prox: str
    """The prox loss of the inner solver: inpo, ipo, dpo compare pairs by their preference; rebel by
    their rewards; sppo and dro train on every judged response alone."""
    iterations: int = Field(18, ge=1)
    """Iterations: each samples, judges and trains once."""
    ref_update_interval: int = Field(12, ge=1)
    """The reference becomes the current policy every so many iterations."""
    pairing: ClassVar[tuple[str, ...]] = ()
    """Options of `pairing:` that this prox reads."""
    targets: ClassVar[tuple[str, ...]] = ("label",)
    """Values of `pairing.target` that its step can take; the first is that of its paper."""
    centred: ClassVar[bool] = False
    """Whether its baseline is solved from all responses to a prompt."""


class _Step(AlgorithmConfig):
    eta: float = Field(0.002, gt=0)
    """KL coefficient η, the inverse step of mirror descent."""


class Regularised(_Step):
    """A step from π_t along r(y) = P(y ≻ π_t) − τ log(π_t/π_ref)(y), or its closed form."""

    tau_eta_ratio: float = Field(1 / 3, ge=0, le=1)
    """τ/η: the pull of the reference policy. sppo, dro and rebel step from π_t along
    r(y) = P(y ≻ π_t) − τ log(π_t/π_ref)(y); 0 is the sppo and rebel of their papers, 1 anchors at
    the reference alone, as the papers of ipo and dro do."""
    method: Annotated[
        Literal["mirror", "onpo", "mnpo", "heavy_ball"], BeforeValidator(_method_name)
    ] = "mirror"
    """How the inner solver steps: mirror from π_t; onpo (optimistic, arXiv 2502.16852) from a mean
    of past iterates, a step almost twice as long; mnpo (2509.23102) from the mean of the last
    iterates; heavy_ball from π_t extrapolated away from π_{t−1} (the momentum of APO, 2410.06293,
    but win rates are those against π_t, where APO samples from the extrapolated policy). Older
    versions called it apo, which is still read."""
    history: int = Field(3, ge=2, le=16)
    """Iterates in the mean of onpo and mnpo: log-probs under so many are computed."""
    momentum: float = Field(0.3, ge=0, lt=1)
    """Of heavy_ball's extrapolation, α."""

    @property
    def past(self) -> tuple[str, ...]:
        """The options of PAST that its method reads."""
        return tuple(name for name, methods in PAST.items() if self.method in methods)


@PROX_CHOICE.register
class InpoConfig(Regularised):
    """INPO (arXiv 2407.00617), the inner solver of COMAL."""

    prox: Literal["inpo"] = "inpo"
    """INPO (arXiv 2407.00617): pairs by their preference, between reference and last iterate."""
    pairing = PAIRING
    targets = ("label", "win_rate", "cross_fit")


@PROX_CHOICE.register
class IpoConfig(_Step):
    """IPO (arXiv 2310.12036)."""

    prox: Literal["ipo"] = "ipo"
    """IPO (arXiv 2310.12036): pairs by their preference, from the reference."""
    pairing = PAIRING
    targets = ("label", "win_rate", "cross_fit")


@PROX_CHOICE.register
class DpoConfig(AlgorithmConfig):
    """DPO (arXiv 2305.18290)."""

    prox: Literal["dpo"] = "dpo"
    """DPO (arXiv 2305.18290): pairs by their preference, from the reference."""
    beta: float = Field(0.1, gt=0)
    """KL coefficient of dpo."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of flipped labels that dpo assumes."""
    pairing = (LABELS, STRATEGY)


@PROX_CHOICE.register
class SppoConfig(Regularised):
    """SPPO (arXiv 2405.00675)."""

    prox: Literal["sppo"] = "sppo"
    """SPPO (arXiv 2405.00675): every judged response alone, from the last iterate."""
    log_z: Literal["zero", "samples"] = "samples"
    """log Z of sppo: log mean exp((r − ½)/η) over the samples of a prompt, or 0 as in its paper,
    whose step then ends away from the Nash policy where the reference pulls."""


@PROX_CHOICE.register
class DroConfig(Regularised):
    """DRO (arXiv 2405.19107)."""

    prox: Literal["dro"] = "dro"
    """DRO (arXiv 2405.19107): every judged response alone, against its prompt's baseline."""
    centred = True


@PROX_CHOICE.register
class RebelConfig(Regularised):
    """REBEL (arXiv 2404.16767)."""

    prox: Literal["rebel"] = "rebel"
    """REBEL (arXiv 2404.16767): pairs by the difference of their rewards, from the last iterate."""
    pairing = PAIRING
    targets = ("win_rate", "label", "cross_fit")


def from_row(name: str) -> type[AlgorithmConfig] | None:
    """The class of a loss that is registered in `comal_kernels.PROX`, from its hyperparameters.

    With a reward, or with log Z, it steps as sppo, dro and rebel do; τ of a solved baseline is η.
    """
    from comal_kernels import PROX  # loads torch, which the losses above do without

    if name not in PROX:
        return None
    row = PROX[name]
    rewards = "reward" in row.uses or not row.pairwise
    steps = "reward" in row.uses or "log_z" in row.hyper
    base = Regularised if steps else AlgorithmConfig
    known = {*base.model_fields, *(("tau",) if steps and row.centred is not None else ())}
    fields: dict[str, Any] = {
        "prox": (Literal[name], Field(name, description=row.doc or f"{name}, a registered loss."))
    }
    for hyper, rule in row.hyper.items():
        if rule.default is None or hyper in known:
            continue
        limits: dict[str, Any] = {"allow_inf_nan": False}
        if rule.high < float("inf"):
            limits["le"] = rule.high
        if rule.low > -float("inf"):
            limits["gt" if rule.open_low else "ge"] = rule.low
        default: Any = ... if rule.required else float(rule.default)
        description = rule.doc or f"{hyper} of {name}."
        fields[hyper] = (float, Field(default, description=description, **limits))
    create: Any = create_model  # to a type checker a class it can't know
    made = create(f"{name.title()}Config", __base__=base, __module__=__name__, **fields)
    margins = "reward_margin" in row.optional
    made.pairing = reads_of_pairing(row.pairwise, rewards, margins)
    made.targets = known_targets(rewards, margins)
    made.centred = row.centred is not None
    return made


def know_losses() -> None:
    """Give every loss of `comal_kernels.PROX` its class, those of plugins that are loaded too."""
    from comal_kernels import PROX  # loads torch

    for name in PROX:
        PROX_CHOICE.find(name)


def reads_of_pairing(pairwise: bool, rewards: bool, margins: bool) -> tuple[str, ...]:
    """Return the options of `pairing:` that a registered loss reads.

    Args:
        pairwise: Whether it compares pairs; a loss of single responses reads none.
        rewards: Whether it reads rewards; other losses of pairs read preferences, so labels.
        margins: Whether it takes a margin per pair, and so any `pairing.target`.
    """
    if not pairwise:
        return ()
    own = (STRATEGY,) if rewards else (LABELS, STRATEGY)
    return PAIRING if margins else own


def known_targets(rewards: bool, margins: bool) -> tuple[str, ...]:
    """Values of `pairing.target` for a registered loss, its own first: of rewards or preferences.

    `margins`: whether the loss takes a margin per pair, which the other targets are given as.
    """
    own = "win_rate" if rewards else "label"
    others = tuple(name for name in ("label", "win_rate", "cross_fit") if name != own)
    return (own, *others) if margins else (own,)


PROX_CHOICE.look_up = from_row
