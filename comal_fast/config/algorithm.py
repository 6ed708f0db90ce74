"""`algorithm:`, the outer loop and its prox operator: a class a prox, with the options it reads.

A loss that is only in `comal_kernels.PROX`, a plugin's say, gets its class from its row there.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, create_model

from comal_fast.config.choice import Choice
from comal_fast.config.options import Options

PROX_CHOICE = Choice("prox", "prox", default="inpo")
# of `pairing:`, what a loss of pairs reads; labels are of those that read preferences
STRATEGY, LABELS = "pairing.strategy", "pairing.soft_labels"


# of Regularised, beyond the mirror step, and the methods that read each
PAST = {"method": ("onpo", "mnpo", "apo"), "history": ("onpo", "mnpo"), "momentum": ("apo",)}


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
    method: Literal["mirror", "onpo", "mnpo", "apo"] = "mirror"
    """How the inner solver steps: mirror from π_t; onpo (optimistic, arXiv 2502.16852) from a mean
    of past iterates, a step almost twice as long; mnpo (2509.23102) from the mean of the last
    iterates; apo (2410.06293) from π_t extrapolated away from π_{t−1}."""
    history: int = Field(3, ge=2, le=16)
    """Iterates in the mean of onpo and mnpo: log-probs under so many are computed."""
    momentum: float = Field(0.3, ge=0, lt=1)
    """Of apo's extrapolation, α."""

    @property
    def past(self) -> tuple[str, ...]:
        """The options of PAST that its method reads."""
        return tuple(name for name, methods in PAST.items() if self.method in methods)


@PROX_CHOICE.register
class InpoConfig(Regularised):
    """INPO (arXiv 2407.00617), the inner solver of COMAL."""

    prox: Literal["inpo"] = "inpo"
    """INPO (arXiv 2407.00617): pairs by their preference, between reference and last iterate."""
    pairing = (LABELS, STRATEGY)


@PROX_CHOICE.register
class IpoConfig(_Step):
    """IPO (arXiv 2310.12036)."""

    prox: Literal["ipo"] = "ipo"
    """IPO (arXiv 2310.12036): pairs by their preference, from the reference."""
    pairing = (LABELS, STRATEGY)


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
    log_z: Literal["zero", "samples"] = "zero"
    """log Z of sppo: 0 as in its paper, or log mean exp((r − ½)/η) over the samples of a prompt."""


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
    pairing = (STRATEGY,)


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
    made.pairing = reads_of_pairing(row.pairwise, rewards)
    made.centred = row.centred is not None
    return made


def know_losses() -> None:
    """Give every loss of `comal_kernels.PROX` its class, those of plugins that are loaded too."""
    from comal_kernels import PROX  # loads torch

    for name in PROX:
        PROX_CHOICE.find(name)


def reads_of_pairing(pairwise: bool, rewards: bool) -> tuple[str, ...]:
    """Options of `pairing:` that a loss reads: of pairs or responses, by rewards or preferences."""
    if not pairwise:
        return ()
    return (STRATEGY,) if rewards else (LABELS, STRATEGY)


PROX_CHOICE.look_up = from_row
