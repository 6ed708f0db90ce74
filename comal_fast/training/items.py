"""The items that a prox trains on, pairs or responses, and what prox_loss is given for them.

Read off the prox's row in comal_kernels.PROX. dpo, ipo and inpo read the preference of each pair
and the references of their papers. sppo, dro and rebel are the prox operator at π_t for the
gradient of the regularised game, r(y) = P̂(y ≻ π_t) − τ (log π_t(y) − log π_ref(y)): they minimise
to π ∝ π_t exp(r/η), inpo's closed form. So what dro calls its reference is π_t, and its τ is η.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from comal_fast.config import Config
from comal_fast.config.algorithm import Regularised
from comal_fast.config.validate import target_of
from comal_fast.training.batches import MicroBatch
from comal_fast.training.history import step
from comal_kernels import PROX, Prox, Terms
from comal_kernels.transfer import to_device


def reads_rewards(prox: Prox) -> bool:
    """Whether it steps from π_t along rewards, rather than reading preferences of pairs."""
    return "reward" in prox.uses or not prox.pairwise


def keeps_draws(config: Config) -> bool:
    """Return whether a pair at P = ½ teaches something: as a hard label it does not."""
    return (
        config.pairing.labels != "hard"
        or target_of(config) != "label"
        or reads_rewards(PROX[config.algorithm.prox])
    )


def uses_margins(config: Config) -> bool:
    """Return whether pairs are regressed on margins of their own, not on what the loss reads."""
    prox, target = PROX[config.algorithm.prox], target_of(config)
    if not prox.pairwise or config.data.pairs is not None:
        return False
    if reads_rewards(prox):  # win rates per response are its rewards
        return target != "win_rate" or config.pairing.labels != "soft"
    return target != "label"


def hyperparameters(config: Config) -> dict[str, float]:
    """prox_loss's constants, by its names: the options of the same names.

    dro's τ, the coefficient of its KL, is η: that KL is to π_t.
    """
    options, row = config.algorithm.model_dump(), PROX[config.algorithm.prox]
    if isinstance(config.algorithm, Regularised):
        options.pop("log_z", None)  # it goes with the pull of the reference, per item
        options["eta"], options["tau_eta_ratio"] = step(config)
    if row.centred is not None and "tau" not in options:
        options["tau"] = options.get("eta")
    return {name: x for name in row.hyper if isinstance(x := options.get(name), float)}


@dataclass(frozen=True)
class Items:
    """P items over the N rows of samples.parquet.

    chosen, rejected: the rows of each; rejected is None where items are single responses.
    preference (P,) float64: P(chosen ≻ rejected) or P̂(chosen ≻ π_t), whether the loss reads it or
    not. count (P,) int64: how often each came up, its weight. groups: item numbers that must share
    a pass. per_row (N,) and per_item (P,): arguments of prox_loss, by name; NaN in rows that no
    item uses.
    """

    chosen: list[int]
    rejected: list[int] | None
    preference: Tensor
    count: Tensor
    groups: list[list[int]]
    per_row: dict[str, Tensor]
    per_item: dict[str, Tensor]

    def rows(self) -> list[int]:
        """The rows that stand in an item, in order."""
        return sorted({*self.chosen, *(self.rejected or [])})

    def cached(self, micro: MicroBatch, device: torch.device) -> dict[str, Any]:
        """per_row and per_item of a micro-batch, on its device; on the host what plans are of."""
        values = {name: x[micro.rows] for name, x in self.per_row.items()}
        values |= {name: x[micro.items] for name, x in self.per_item.items()}
        return {name: x if name == "group" else to_device(x, device) for name, x in values.items()}


def make_items(
    config: Config,
    *,
    chosen: list[int],  # (P,) rows
    rejected: list[int] | None,  # (P,) rows
    preference: ArrayLike,  # (P,)
    margin: ArrayLike | None = None,  # (P,) the targets of pairs, times η; None: what labels say
    count: ArrayLike,  # (P,) int
    prompt: ArrayLike,  # (N,) int, the prompt of each row
    win_rate: ArrayLike,  # (N,) P̂(y ≻ π_t)
    ref_logp: ArrayLike,  # (N,) nats
    last_logp: ArrayLike,  # (N,) nats, of what stands in for π_t: see comal_fast.training.history
    policy_logp: ArrayLike | None = None,  # (N,) nats, of π_t itself; None: it is last_logp
) -> Items:
    """The items, with what the prox of this configuration reads, nothing else."""
    prox, algorithm = PROX[config.algorithm.prox], config.algorithm
    prompts = np.asarray(prompt, dtype=np.int64)
    ref, last, wins = (np.asarray(x, dtype=np.float64) for x in (ref_logp, last_logp, win_rate))
    eta, pull = 1.0, np.zeros_like(last)
    if isinstance(algorithm, Regularised):
        eta, ratio = step(config)
        pull = ratio * (last - ref)  # τ/η log π_t/π_ref
    reward = wins - eta * pull
    columns = {
        "ref": ("ref_logp", last if reads_rewards(prox) else ref),
        "last": ("last_logp", last),
        "reward": ("reward", reward),
    }
    per_row = {name: torch.tensor(x) for term, (name, x) in columns.items() if term in prox.uses}
    labels = torch.tensor(np.asarray(preference, dtype=np.float64))
    per_item: dict[str, Tensor] = {}
    if margin is not None and rejected is not None:
        margins = np.asarray(margin, dtype=np.float64)
        if per_row.pop("reward", None) is not None:  # of r(y) = P(y ≻ π_t) − τ log(π_t/π_ref)(y)
            margins = margins - eta * (pull[chosen] - pull[rejected])
        per_item["reward_margin"] = torch.tensor(margins)
    elif "preference" in prox.uses or (
        "preference" in prox.optional and config.pairing.labels != "hard"
    ):
        per_item["preference"] = labels
    if "log_z" in prox.hyper and isinstance(algorithm, Regularised):
        shift = pull  # prox_loss knows no τ: the pull goes with log Z
        log_z = getattr(algorithm, "log_z", 0.0)
        if log_z == "samples":
            sampled = last if policy_logp is None else np.asarray(policy_logp, dtype=np.float64)
            # Z is a mean under X, the policy that the step starts from, of samples from π_t
            shift = pull + log_mean_exp(last - sampled + (reward - 0.5) / eta, prompts)
        elif isinstance(log_z, float):
            shift = pull + log_z
        per_item["log_z"] = torch.tensor(shift[chosen])
    groups = [[item] for item in range(len(chosen))]
    if prox.centred is not None:  # the baseline is solved from all of a prompt's responses
        per_row["group"] = torch.tensor(prompts)
        members: dict[int, list[int]] = {}
        for item, number in enumerate(prompts[chosen].tolist()):
            members.setdefault(number, []).append(item)
        groups = list(members.values())
    counts = torch.tensor(np.asarray(count, dtype=np.int64))
    return Items(chosen, rejected, labels, counts, groups, per_row, per_item)


def log_mean_exp(x: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N,) log of the mean of exp(x) (N,) over the rows of the same group (N,)."""
    _, place = np.unique(group, return_inverse=True)
    top = np.full(place.max() + 1, -np.inf)
    np.maximum.at(top, place, x)
    mean = np.bincount(place, np.exp(x - top[place])) / np.bincount(place)
    result: NDArray[np.float64] = (top + np.log(mean))[place]
    return result


def implicit_rewards(config: Config, logp: Tensor, cached: dict[str, Any]) -> Tensor:
    """(S,) what each response's log-prob (S,) has gained on the loss's anchor; dpo's times β."""
    prox, hyper = PROX[config.algorithm.prox], hyperparameters(config)
    terms = Terms(cached.get("ref_logp"), cached.get("last_logp"), None, None, hyper)
    return (hyper[prox.scale] if prox.scale else 1.0) * (logp - prox.anchor(terms))
