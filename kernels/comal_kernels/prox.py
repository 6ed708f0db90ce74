"""The prox losses as rows of a table: each is φ(z − offset), with φ, its derivative and its offset.

z is linear in the trained policy's sequence log-probs (a pair's difference, or one response's sum);
the offset depends on cached numbers only. The fused and the plain path share these rows.

Pairs: z = logp(chosen) − logp(rejected). Responses (rejected=None): z = logp(response).
offset = anchor + target: `anchor` is the reference mix that z is measured from, `target` what
z − anchor is pulled towards. Everything a row receives is float64, in one order, shape (P,).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor
from torch.nn.functional import logsigmoid

from comal_kernels.derivative import check_derivative
from comal_kernels.row import Hyper, Prox, Terms

_ROWS: dict[str, Prox] = {}
PROX: Mapping[str, Prox] = MappingProxyType(_ROWS)


def register(prox: Prox, *, replace: bool = False) -> Prox:
    """Add a loss to PROX under its name, and return it.

    Raises:
        ValueError: the name is taken, unless `replace`; an unknown term in `uses` or `optional`;
            dphi is not the derivative of phi.
    """
    if prox.name in _ROWS and not replace:
        raise ValueError(f"prox: {prox.name!r} is registered already; expected replace=True")
    known = {"ref", "last", "reward", "reward_margin", "preference"}
    unknown = (set(prox.uses) | set(prox.optional)) - known
    if unknown:
        raise ValueError(f"prox: uses/optional name {sorted(unknown)}, known are {sorted(known)}")
    check_derivative(prox)
    _ROWS[prox.name] = prox
    return prox


def _positive(doc: str) -> Hyper:
    return Hyper(low=0.0, open_low=True, doc=doc)


def _square(u: Tensor, c: Terms) -> Tensor:
    return u * u


def _two(u: Tensor, c: Terms) -> Tensor:
    return 2.0 * u


def _smoothed(c: Terms) -> Tensor:  # (P,) weight of the order chosen ≻ rejected
    eps = c["label_smoothing"]
    return c["preference"] * (1.0 - 2.0 * eps) + eps


def _pair_target(c: Terms) -> Tensor:
    """Return what a pair's log-ratio is regressed on: (2P − 1)/2η, or a given margin Δr over η.

    Only a difference of one number per response, such as of win rates r(y) = P(y ≻ π_t), leaves the
    minimiser the same whatever pairs are trained on.
    """
    if c.reward is not None:
        return c["reward"] / c["eta"]
    return (2.0 * c["preference"] - 1.0) / (2.0 * c["eta"])


def _dpo(u: Tensor, c: Terms) -> Tensor:
    v, p = c["beta"] * u, _smoothed(c)
    return -p * logsigmoid(v) - (1.0 - p) * logsigmoid(-v)


def _inpo_anchor(c: Terms) -> Tensor:
    mix = c["tau_eta_ratio"]
    return mix * c["ref"] + (1.0 - mix) * c["last"]


# minimiser π ∝ π_ref exp(r/β)
register(
    Prox(
        "dpo",
        phi=_dpo,
        dphi=lambda u, c: c["beta"] * ((c["beta"] * u).sigmoid() - _smoothed(c)),
        anchor=lambda c: c["ref"],
        uses=("ref",),
        optional=("preference",),
        hyper={
            "beta": _positive("β, weight of the KL to the reference"),
            "label_smoothing": Hyper(
                0.0, 0.0, 0.5, doc="probability that the label of a pair is the wrong way round"
            ),
        },
        scale="beta",
        doc="DPO, arXiv 2305.18290 eq. 7; smoothed as in its conservative form",
    )
)

# minimiser π ∝ π_ref exp(P(y ≻ μ)/η)
register(
    Prox(
        "ipo",
        phi=_square,
        dphi=_two,
        anchor=lambda c: c["ref"],
        target=_pair_target,
        uses=("ref",),
        optional=("preference", "reward_margin"),
        hyper={"eta": _positive("η, weight of the KL to the reference")},
        doc="IPO, arXiv 2310.12036 eq. 17",
    )
)

# minimiser π ∝ π_t^(1−τ/η) π_ref^(τ/η) exp(P(y ≻ π_t)/η)
register(
    Prox(
        "inpo",
        phi=_square,
        dphi=_two,
        anchor=_inpo_anchor,
        target=_pair_target,
        uses=("ref", "last"),
        optional=("preference", "reward_margin"),
        hyper={
            "eta": _positive("η, weight of the KLs to reference and last iterate together"),
            "tau_eta_ratio": Hyper(
                low=0.0, high=1.0, doc="τ/η, the reference's share of that weight"
            ),
        },
        doc="INPO, arXiv 2407.00617; the inner solver of COMAL, arXiv 2410.23223",
    )
)

# log Z = 0 is the form of the paper; minimiser π ∝ π_t exp(P(y ≻ π_t)/η) where log Z is exact
register(
    Prox(
        "sppo",
        phi=_square,
        dphi=_two,
        anchor=lambda c: c["last"],
        target=lambda c: (c["preference"] - 0.5) / c["eta"] - c["log_z"],
        pairwise=False,
        uses=("last", "preference"),
        hyper={
            "eta": _positive("η, weight of the KL to the last iterate"),
            "log_z": Hyper(
                0.0, per="response", doc="log Z, Z the mean of exp((P(y ≻ π_t) − ½)/η) under π_t"
            ),
        },
        doc="SPPO, arXiv 2405.00675, per response",
    )
)

# ½ (r − V − τ (logp − ref))², as a square in logp; V solved per group: ∂loss/∂V = 0 there, so V
# counts as a constant. Minimiser π ∝ π_ref exp(r/τ).
register(
    Prox(
        "dro",
        phi=lambda u, c: 0.5 * (c["tau"] * u) ** 2,
        dphi=lambda u, c: c["tau"] ** 2 * u,
        anchor=lambda c: c["ref"],
        target=lambda c: (c["reward"] - c["value"]) / c["tau"],
        pairwise=False,
        uses=("ref", "reward"),
        hyper={
            "tau": _positive("τ, weight of the KL to the reference"),
            "value": Hyper(
                None, per="sequence", doc="V, the prompt's baseline; None: solved per group"
            ),
        },
        centred="value",
        doc="DRO, arXiv 2405.19107, per response",
    )
)

# (η (h − h_last) − Δr)² = η² (h − h_last − Δr/η)²; minimiser π ∝ π_t exp(r/η)
register(
    Prox(
        "rebel",
        phi=lambda u, c: (c["eta"] * u) ** 2,
        dphi=lambda u, c: 2.0 * c["eta"] ** 2 * u,
        anchor=lambda c: c["last"],
        target=lambda c: c["reward"] / c["eta"],
        uses=("last", "reward"),
        optional=("reward_margin",),
        hyper={"eta": _positive("η, weight of the KL to the last iterate")},
        doc="REBEL, arXiv 2404.16767",
    )
)
