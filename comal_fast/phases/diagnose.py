"""diagnose: signs of a failing run after an iteration, and what the configuration does then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.config import Config
from comal_fast.config.algorithm import IpoConfig, Regularised
from comal_fast.config.options import what
from comal_fast.context import Context
from comal_fast.diagnostics import CHECKS, Evaluated, History, unbiased_variance
from comal_fast.phases import evaluate
from comal_fast.phases.generate import rows_by_prompt
from comal_fast.phases.judge import read_matrices
from comal_fast.phases.logps import model_logps, prompt_responses
from comal_fast.phases.skeleton import Made, make
from comal_fast.store.artefacts import make_key
from comal_fast.system.terminal import console
from comal_kernels import PROX

KEY_VERSION = 2  # of the checks: findings of other versions are made anew


@dataclass(frozen=True)
class Ending:
    """Why a run ends before its last iteration, and which iterate is its result."""

    action: str
    name: str
    text: str
    result: int


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/diagnostics.json: what fired, on what evidence, and the action."""
    start = time.monotonic()
    directory, limits = context.directory, context.config.diagnostics
    evaluated = evaluate.iterates(context.config, iteration)
    distances = _distances(context, iteration, _compared(context, iteration, evaluated))
    key = make_key(
        "diagnose",
        directory.iteration(iteration).model.key(),
        [directory.iteration(t).evaluation.key() for t in evaluated],
        distances,
        what(limits),
        KEY_VERSION,
        len(evaluate.iterates(context.config)),
    )

    def work() -> Made:
        history = _history(context, iteration, evaluated, distances)
        fired = []
        for name, check in CHECKS.items():
            action = getattr(limits, name)
            found = check(history, limits) if action != "off" else None
            if found is not None:
                fired.append({"name": name, "action": action, **asdict(found)})
                text = f"{name}, iteration {iteration} ({action}): {found.text}"
                console.print(f"[yellow]![/] {text}")
        content = {
            "iterate": iteration,
            "checked": [name for name in CHECKS if getattr(limits, name) != "off"],
            "findings": fired,
            "distances": {str(t): d for t, d in distances.items()},
        }
        row = {
            "diagnostics/fired": [f["name"] for f in fired],
            "perf/seconds": time.monotonic() - start,
        }
        return content, row

    make(context, "diagnose", iteration, directory.iteration(iteration).diagnostics, key, work)


def findings(context: Context, last: int) -> list[dict[str, Any]]:
    """All findings up to iteration `last`, each with its `iteration`; none where it broke off."""
    found = []
    for t in range(1, last + 1):
        folder = context.directory.iteration(t)
        if not folder.model.exists():
            break
        content = folder.diagnostics.read()
        found += [{"iteration": t, **finding} for finding in content["findings"]]
    return found


def ending(context: Context, iteration: int) -> Ending | None:
    """How this iteration's findings end the run, if they do; rollback goes before stop."""
    here = [f for f in findings(context, iteration) if f["iteration"] == iteration]
    for action, result in (("rollback", iteration - 1), ("stop", iteration)):
        for finding in here:
            if finding["action"] == action:
                return Ending(action, finding["name"], finding["text"], result)
    return None


def _history(
    context: Context, iteration: int, evaluated: list[int], distances: dict[int, float]
) -> History:
    config = context.config
    rows = context.directory.rows()
    own = (r for r in rows if r["phase"] == "train" and r["iteration"] == iteration)
    steps = [row for row in own if "loss" in row]  # not those that were left out
    lengths = [
        row["generation/response_length"]
        for row in rows
        if row["phase"] == "generate" and row["iteration"] == iteration
    ]
    return History(
        iteration=iteration,
        steps=steps,
        trained_length=lengths[-1] if lengths else math.nan,
        evaluated={t: _evaluated(context, t, distances, iteration) for t in evaluated},
        ref_update_interval=config.algorithm.ref_update_interval,
        tau=_tau(config),
        reward_scale=_reward_scale(config),
        num_evaluations=len(evaluate.iterates(config)) - 1,
        pull=_kl_weight(config) if _steps_from_last(config) else None,
        win_rate_variances={
            t: _win_rate_variances(context, t) for t in _judged(context, iteration)
        },
    )


def _evaluated(
    context: Context, iterate: int, distances: Mapping[int, float], iteration: int
) -> Evaluated:
    folder = context.directory.iteration(iterate)
    content = folder.evaluation.read()
    if iterate != iteration:
        distances = {}
        if iterate and folder.diagnostics.exists():
            saved = folder.diagnostics.read()["distances"]
            distances = {int(t): d for t, d in saved.items()}
    return Evaluated(
        iterate=iterate,
        reference=context.reference_of(iterate),
        wins={int(t): np.array(w["values"]) for t, w in content["win_rates"].items()},
        kl_to_initial=np.array(content["kl_to_initial"]["values"]),
        kl_to_reference=np.array(content["kl_to_reference"]["values"]),
        length=content["response_length"]["mean"],
        distances=distances,
    )


def _reward_scale(config: Config) -> float:
    """rewards/* of training's metrics per nat of log-ratio: the prox's own scale, as in train."""
    scale = PROX[config.algorithm.prox].scale
    return float(getattr(config.algorithm, scale)) if scale else 1.0


def _tau(config: Config) -> float | None:
    """τ of the regularised game that the prox solves; a loss without τ/η holds none."""
    algorithm = config.algorithm
    return algorithm.eta * algorithm.tau_eta_ratio if isinstance(algorithm, Regularised) else None


def _kl_weight(config: Config) -> float | None:
    """Return the weight of KL(π ‖ π_ref) in what the loss maximises; None where it is no KL's."""
    algorithm = config.algorithm
    return algorithm.eta if isinstance(algorithm, IpoConfig) else _tau(config)


def _steps_from_last(config: Config) -> bool:
    """Return whether the step starts from the last iterate, not from a mean of several."""
    return getattr(config.algorithm, "method", "mirror") == "mirror"


# judged samples: whether their win rates differ, so that the policy that drew them could gain


def _judged(context: Context, iteration: int) -> list[int]:
    """Return the iterations in slow_convergence's window whose judged samples it reads."""
    limits = context.config.diagnostics
    if limits.slow_convergence == "off" or _kl_weight(context.config) is None:
        return []
    window = range(iteration - limits.slow_window + 1, iteration + 1)
    if window[0] < 1:
        return []
    return [t for t in window if context.directory.iteration(t).judgments.exists()]


def _win_rate_variances(context: Context, iteration: int) -> np.ndarray:
    """Return (prompts,) variances of the regularised win rates of the samples of one iteration.

    A prompt with fewer than three samples, or some whose log-probs are not known, counts as 0: a
    policy that could gain is missed rather than one that could not is warned about.
    """
    folder, weight = context.directory.iteration(iteration), _kl_weight(context.config)
    samples = folder.samples.read()
    ratios = np.zeros(samples.num_rows)
    if weight and context.reference_of(iteration) != iteration - 1:
        logps = folder.logps.read()
        own = "policy_logp" if "policy_logp" in logps.column_names else "last_logp"
        policy, reference = (logps[c].to_numpy() for c in (own, "ref_logp"))
        ratios = weight * (policy - reference)
    rows, found = rows_by_prompt(samples), []
    for prompt, matrix in read_matrices(context, iteration).items():
        pull = ratios[rows[prompt]]
        known = len(matrix) >= 3 and bool(np.isfinite(pull).all())
        margins = matrix - 0.5 - (pull[:, None] - pull)
        found.append(float(unbiased_variance(margins)) if known else 0.0)
    return np.array(found)


# the probe: log-probs of a few responses of the initial policy, by which iterates are compared


def _compared(context: Context, iteration: int, evaluated: list[int]) -> list[int]:
    """Return the earlier iterates whose distance to this one a check reads."""
    limits = context.config.diagnostics
    if iteration not in evaluated:
        return []
    if limits.cycling != "off":
        return evaluated[:-1]
    begin = iteration - limits.slow_window
    return [begin] if limits.slow_convergence != "off" and begin in evaluated else []


def _distances(context: Context, iteration: int, earlier: list[int]) -> dict[int, float]:
    """Root mean square difference of the probe's log-probs to each earlier iterate's, nats."""
    if not earlier:
        return {}
    now = _probe(context, iteration)
    return {t: float(np.sqrt(np.mean((now - _probe(context, t)) ** 2))) for t in earlier}


def _probe(context: Context, iterate: int) -> np.ndarray:
    """(probe_responses,) log-probs under π_iterate of the first held-out samples of π_0."""
    config, artefact = context.config, context.directory.iteration(iterate).probe
    source = context.directory.iteration(0).eval_samples
    key = make_key(
        "probe",
        source.key(),
        context.policies.key(iterate),
        config.diagnostics.probe_responses,
        config.training.max_tokens_per_microbatch,
    )
    if not artefact.holds(key):
        samples = source.read()
        rows = range(min(config.diagnostics.probe_responses, samples.num_rows))
        sequences = prompt_responses(samples, rows)
        values = model_logps(context, [iterate], sequences, "probe")[0][iterate]
        artefact.write(pa.table({"logp": pa.array(values, pa.float64())}), key)
    return artefact.read()["logp"].to_numpy()
