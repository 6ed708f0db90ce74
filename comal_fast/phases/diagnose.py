"""diagnose: signs of a failing run after an iteration, and what the configuration does then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from comal_fast.config import Config
from comal_fast.context import Context
from comal_fast.diagnostics import CHECKS, Evaluated, History
from comal_fast.phases import evaluate, train
from comal_fast.phases.logps import model_logps, prompt_responses
from comal_fast.store.artefacts import (
    folder_key,
    json_key,
    make_key,
    read_json,
    read_table,
    table_key,
    write_json,
    write_table,
)
from comal_fast.store.metrics import read_metrics
from comal_fast.system.terminal import console
from comal_kernels import PROX


@dataclass(frozen=True)
class Ending:
    """Why a run ends before its last iteration, and which iterate is its result."""

    action: str
    name: str
    text: str
    result: int


def path(context: Context, iteration: int) -> Path:
    """The artefact."""
    return context.folder(iteration) / "diagnostics.json"


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/diagnostics.json: what fired, on what evidence, and the action."""
    config = context.config
    limits = config.diagnostics
    start = time.monotonic()
    evaluated = [t for t in evaluate.iterates(config, iteration) if t <= iteration]
    distances: dict[int, float] = {}
    if limits.cycling != "off" and iteration in evaluated:
        distances = _distances(context, iteration, evaluated[:-1])
    wanted = make_key(
        "diagnose",
        folder_key(train.path(context, iteration)),
        [json_key(evaluate.path(context, t)) for t in evaluated],
        distances,
        asdict(limits),
    )
    if json_key(path(context, iteration)) == wanted:
        return
    metrics = context.metrics("diagnose", iteration)
    history = _history(context, iteration, evaluated, distances)
    findings = []
    for name, check in CHECKS.items():
        action = getattr(limits, name)
        found = check(history, limits) if action != "off" else None
        if found is not None:
            findings.append({"name": name, "action": action, **asdict(found)})
            console.print(f"[yellow]![/] {name}, iteration {iteration} ({action}): {found.text}")
    content = {
        "key": wanted,
        "iterate": iteration,
        "checked": [name for name in CHECKS if getattr(limits, name) != "off"],
        "findings": findings,
        "distances": {str(t): d for t, d in distances.items()},
    }
    metrics.log(
        diagnostics__fired=[f["name"] for f in findings],
        perf__seconds=time.monotonic() - start,
    )
    write_json(path(context, iteration), content)
    context.note("diagnose", iteration)


def findings(context: Context, last: int) -> list[dict[str, Any]]:
    """All findings up to iteration `last`, each with its `iteration`; none where it broke off."""
    found = []
    for t in range(1, last + 1):
        if not train.path(context, t).exists():
            break
        content = read_json(path(context, t))
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
    rows = read_metrics(context.directory / "metrics.jsonl")
    steps = [r for r in rows if r["phase"] == "train" and r["iteration"] == iteration]
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
        resamples=config.evaluation.bootstrap,
        seed=config.seed,
    )


def _evaluated(
    context: Context, iterate: int, distances: Mapping[int, float], iteration: int
) -> Evaluated:
    content = read_json(evaluate.path(context, iterate))
    if iterate != iteration:
        distances = {}
        if iterate and path(context, iterate).is_file():
            saved = read_json(path(context, iterate))["distances"]
            distances = {int(t): d for t, d in saved.items()}
    return Evaluated(
        iterate=iterate,
        reference=context.reference_of(iterate) if iterate else 0,
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
    """τ of the regularised game that the prox solves; dpo's and ipo's losses hold none."""
    algorithm = config.algorithm
    if algorithm.prox in ("dpo", "ipo"):
        return None
    return algorithm.eta * algorithm.tau_eta_ratio


# the probe: log-probs of a few responses of the initial policy, by which iterates are compared


def _distances(context: Context, iteration: int, earlier: list[int]) -> dict[int, float]:
    """Root mean square difference of the probe's log-probs to each earlier iterate's, nats."""
    now = _probe(context, iteration)
    return {t: float(np.sqrt(np.mean((now - _probe(context, t)) ** 2))) for t in earlier}


def _probe(context: Context, iterate: int) -> np.ndarray:
    """(probe_responses,) log-probs under π_iterate of the first held-out samples of π_0."""
    artefact = context.folder(iterate) / "probe.parquet"
    source = evaluate.samples_path(context, 0)
    config = context.config
    wanted = make_key(
        "probe",
        table_key(source),
        context.model_key(iterate),
        config.diagnostics.probe_responses,
        config.training.max_tokens_per_microbatch,
    )
    if table_key(artefact) != wanted:
        samples = read_table(source)
        rows = range(min(config.diagnostics.probe_responses, samples.num_rows))
        sequences = prompt_responses(samples, rows)
        values = model_logps(context, [iterate], sequences, "probe")[0][iterate]
        write_table(artefact, pa.table({"logp": pa.array(values, pa.float64())}), wanted)
    return read_table(artefact)["logp"].to_numpy()
