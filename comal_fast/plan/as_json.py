"""A plan as plain containers, for `--json`: bytes, seconds, tokens and hours as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from comal_fast.plan.machines import Machine
from comal_fast.plan.modes import CONFIGURED
from comal_fast.plan.search import Fit, usable
from comal_fast.plan.several import Several
from comal_fast.plan.whole import Whole


def plan_json(
    model: str,
    machine: Machine,
    memory: float,
    fits: Sequence[Fit],
    best: Fit | None,
    hours: Sequence[Whole],
) -> dict[str, Any]:
    """What `plan` shows of one GPU; `best` is None where no mode fits."""
    return {
        "model": model,
        "gpu": {"name": machine.name, "bytes": memory},
        "modes": [_mode(fit, memory) for fit in fits],
        "best": best.mode.name if best else None,
        "phases": {
            name: {"at": peak.moment, "bytes": peak.bytes, "parts": dict(peak.parts)}
            for name, peak in (best.phases.items() if best else ())
        },
        "step": {"seconds": best.seconds, "parts": best.rows} if best else None,
        "host_bytes": best.host if best else None,
        "hours": [{"gpus": w.gpus, "phases": w.hours, "total": w.total} for w in hours],
    }


def several_json(
    model: str, machine: Machine, memory: float, found: list[Several]
) -> dict[str, Any]:
    """What `plan --nodes` shows."""
    rows = [
        {**asdict(plan), "mode": plan.mode.name, "recomputed": plan.mode.recomputed}
        for plan in found
    ]
    return {"model": model, "gpu": {"name": machine.name, "bytes": memory}, "plans": rows}


def _mode(fit: Fit, memory: float) -> dict[str, Any]:
    own = fit.mode.name == CONFIGURED
    return {
        "mode": fit.mode.name,
        "recomputed_layers": fit.mode.recomputed,
        "offloaded": fit.mode.offload_activations,
        "pairs": fit.work.pairs,
        "tokens": fit.work.budget,
        "bytes": fit.bytes,
        "seconds": fit.seconds,
        "tokens_per_s": fit.rate,
        "fits": fit.fits(memory if own else usable(memory)),
    }
