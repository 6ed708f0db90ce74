"""The options of `ProxTrainer`: DPOConfig's, and what a prox loss takes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from trl import DPOConfig

from comal_kernels import checks
from comal_kernels.row import Prox

# of DPOConfig, what belongs to losses that are not here
OTHERS = (
    "loss_type",
    "loss_weights",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "use_weighting",
    "discopop_tau",
)
OWN = ("beta", "label_smoothing")  # hyperparameters of dpo that DPOConfig has


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ProxConfig(DPOConfig):
    """DPOConfig with a loss of `comal_kernels.PROX`, by packed batches.

    Raises ValueError, one line, for an option that the loss lacks or does not have.
    """

    prox: str = _option("dpo", "Loss: dpo, ipo, inpo, sppo, dro, rebel, or one registered.")
    eta: float | None = _option(None, "η of ipo, inpo, sppo and rebel (TRL's beta of ipo).")
    tau_eta_ratio: float | None = _option(None, "inpo: τ/η, the reference's share of the KLs.")
    tau: float | None = _option(None, "dro: τ, weight of the KL to the reference.")
    log_z: float | None = _option(None, "sppo: log Z; 0 is the paper's form.")
    prox_kwargs: dict[str, Any] | str | None = _option(
        None, "Hyperparameters of a registered loss, by name."
    )
    average_log_prob: bool = _option(
        False,
        "Compare mean log-probs per token, not sums; with ipo, TRL's loss of that name.",
    )
    packing: bool = _option(True, "A batch is one row without padding. False: padded, as TRL's.")
    share_prompts: bool = _option(
        True, "With packing: a prompt runs once for all of its responses in a batch."
    )
    precompute_ref_log_probs: bool = _option(
        True, "Log-probs of the reference (and last iterate) are computed once and kept in files."
    )
    logps_dir: str | None = _option(
        None, "Where these files are kept and looked for; None: logps in output_dir."
    )
    backend: str = _option("auto", "Of comal_kernels: auto, triton or torch.")

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "prox_kwargs"]

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        self.padding_free = False  # TRL switches it off, with a warning; `packing` is what it means
        super().__post_init__()
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(DPOConfig)
        }
        for name in OTHERS:
            if getattr(self, name) != defaults[name]:
                checks.refuse(name, f"{getattr(self, name)!r} is none of prox", "its default")
        row = self.row
        for name in OWN:
            if name not in row.hyper and getattr(self, name) != defaults[name]:
                checks.refuse(name, f"{self.prox} has none", f"its own: {', '.join(row.hyper)}")
        checks.hyperparameters(row, self.hyperparameters, 1, 2)
        if self.packing and self.pad_to_multiple_of is not None:
            checks.refuse("pad_to_multiple_of", "packed rows have no padding", "None")
        if "last" in row.uses and not self.precompute_ref_log_probs:
            checks.refuse(
                "precompute_ref_log_probs",
                f"False, and {self.prox} reads the policy that training starts from",
                "True",
            )

    @property
    def row(self) -> Prox:
        """The loss. Raises ValueError for an unknown name."""
        return checks.loss_row(self.prox)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What is set of the loss's, by name."""
        given = {name: getattr(self, name) for name in ("eta", "tau_eta_ratio", "tau", "log_z")}
        given = {name: value for name, value in given.items() if value is not None}
        own = {name: getattr(self, name) for name in OWN if name in self.row.hyper}
        assert not isinstance(self.prox_kwargs, str)  # parsed by TrainingArguments
        return own | given | (self.prox_kwargs or {})
