"""A synthetic run directory, as docs/run-directory.md says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ATTACK = "<script>alert('x')</script> & \"more\" {{ 7 * 7 }}\x00 $x_1$"
LONG = "A long answer goes on. " * 400 + "THE-VERY-END"
RATES = {
    1: {0: (0.581, 0.5312, 0.629)},
    2: {0: (0.604, 0.552, 0.6571), 1: (0.5377, 0.482, 0.591)},
    3: {0: (0.6437, 0.5914, 0.6958), 1: (0.562, 0.51, 0.612), 2: (0.5133, 0.461, 0.566)},
}


def build(path: Path, iterations: int = 3, done: int | None = None, seed: int = 7) -> Path:
    """A run of `iterations` of which `done` (all) are finished, as docs/run-directory.md says."""
    rng = np.random.default_rng(seed)
    done = iterations if done is None else done
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config(iterations, seed)))
    env = {"versions": {"torch": "2.11.0", "numpy": "2.4.6"}, "device": "cpu", "python": "3.11.9",
           "command": ["comal-fast", "run", "demo.yaml"]}  # fmt: skip
    (path / "env.json").write_text(json.dumps(env))
    rows: list[dict[str, Any]] = []
    for t in range(done + 1):
        folder = path / "iterations" / f"{t:04d}"
        folder.mkdir(parents=True)
        if t > 0:
            rows += iteration_rows(rng, t)
            write_training_files(folder, rng)
        write_eval_samples(folder / "eval_samples.parquet", t)
        evaluation = evaluate(rng, t)
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        rows.append(evaluate_row(evaluation))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "state.json").write_text("{}")
    if done == iterations and done:
        mean, low, high = RATES[done][0]
        summary = {
            "win_rate": {"mean": mean, "ci95": [low, high], "n_prompts": 64}, "cycle_rate": 0.171,
            "seconds": {"train": 12.0}, "seed": seed, "iterations": iterations,
            "versions": {"torch": "2.11.0"}, "device": "cpu",
        }  # fmt: skip
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def config(iterations: int, seed: int) -> dict[str, Any]:
    return {
        "seed": seed, "output_dir": "runs/synthetic",
        "model": {"name_or_path": "package:weights/SmolLM2-135M-Instruct", "revision": None},
        "data": {"prompts": "builtin", "eval_prompts": 64},
        "generation": {"num_generations": 4, "max_new_tokens": 96},
        "oracle": {"name": "criteria", "weights": {}},
        "pairing": {"strategy": "best_worst", "soft_labels": False},
        "algorithm": {"prox": "inpo", "eta": 0.002, "tau_eta_ratio": 1 / 3,
                      "iterations": iterations, "ref_update_interval": 2},
        "training": {"learning_rate": 1e-5, "gradient_checkpointing": False},
        "evaluation": {"bootstrap": 10000},
    }  # fmt: skip


def write_training_files(folder: Path, rng: np.random.Generator) -> None:
    samples = {
        "prompt_id": [0, 0], "sample": [0, 1], "prompt": ["p", "p"], "response": ["a", "b"],
        "prompt_ids": [[1], [1]], "response_ids": [[2], [3]], "finished": [True, True],
    }  # fmt: skip
    pq.write_table(pa.table(samples), folder / "samples.parquet")
    matrix = [[0.5, 0.75, 0.25, 0.5]]
    judged = {"prompt_id": [0], "matrix": matrix, "cycle": [False]}
    pq.write_table(pa.table(judged), folder / "judgments.parquet")
    (folder / "model").mkdir()


def iteration_rows(rng: np.random.Generator, t: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"phase": "generate", "generation/response_length": 60.0 - 3 * t,
         "generation/finished": 0.8, "generation/responses": 1280, "perf/tokens_per_s": 900.0,
         "perf/seconds": 41.0 + t},
        {"phase": "judge", "oracle/cycle_rate": 0.15 + 0.02 * t, "oracle/decisiveness": 0.41,
         "perf/seconds": 1.7},
        {"phase": "pair", "comal/pairs": 320, "comal/preference": 0.83, "perf/seconds": 0.02},
        {"phase": "logps", "comal/kl_to_reference": 0.8 * t, "perf/tokens_per_s": 4000.0,
         "perf/seconds": 9.5},
    ]  # fmt: skip
    for step in range(1, 31):
        margin = 0.02 * step + rng.normal(0, 0.08)
        chosen = rng.normal(-0.05, 0.05)
        rows.append({
            "phase": "train", "step": step, "epoch": step / 30,
            "loss": 60 * float(np.exp(-step / 20)) + rng.normal(0, 1.5), "rewards/chosen": chosen,
            "rewards/rejected": chosen - margin, "rewards/margins": margin,
            "rewards/accuracies": float(np.clip(0.5 + 0.3 * margin, 0, 1)),
            "logps/chosen": -80.0, "logps/rejected": -95.0, "grad_norm": 4 + rng.gamma(2, 1),
            "learning_rate": 1e-5, "perf/tokens_per_s": 700.0, "mem/peak_gib": 2.5 + 0.25 * t,
            "perf/seconds": 2.0,
        })  # fmt: skip
    return [{"iteration": t, **row} for row in rows]


def write_eval_samples(path: Path, t: int, n: int = 20) -> None:
    texts = [f"answer {i} of iterate {t}" for i in range(n)]
    texts[0], texts[-1] = ATTACK, LONG
    prompts = [f"question {i} <b>&" for i in range(n)]
    table = pa.table({
        "prompt_id": [100 + i for i in range(n) for _ in range(2)],
        "sample": [k for _ in range(n) for k in range(2)],
        "prompt": [prompts[i] for i in range(n) for _ in range(2)],
        "response": [texts[i] if k == 0 else "SECOND-SAMPLE" for i in range(n) for k in range(2)],
        "prompt_ids": [[1, 2]] * (2 * n),
        "response_ids": [list(range(1000 + 7 * t if i == 0 else 5)) for i in range(n)
                         for _ in range(2)],
        "finished": [i != n - 1 for i in range(n) for _ in range(2)],
    })  # fmt: skip
    pq.write_table(table, path)


def evaluate(rng: np.random.Generator, t: int) -> dict[str, Any]:
    lengths = np.clip(rng.gamma(6, 9 - min(t, 5), 64), 3, 96).astype(int).tolist()
    repeated = np.clip(rng.normal(0.04, 0.04, 64), 0, 1).tolist()
    return {
        "iterate": t, "n_prompts": 64,
        "win_rates": {str(s): {"mean": mean, "ci95": [low, high]}
                      for s, (mean, low, high) in RATES.get(t, {}).items()},
        "response_length": {"mean": float(np.mean(lengths)), "histogram": lengths},
        "repetition": {"mean": float(np.mean(repeated)), "values": repeated},
        "finished": min(1.0, 0.8 + 0.04 * t),
        "kl_to_initial": {"mean": 1.234 * t, "ci95": [1.0 * t, 1.5 * t]},
        "kl_to_reference": {"mean": 0.9 * (t % 2), "ci95": [0.7 * (t % 2), 1.1 * (t % 2)]},
    }  # fmt: skip


def evaluate_row(evaluation: dict[str, Any]) -> dict[str, Any]:
    row = {"phase": "evaluate", "iteration": evaluation["iterate"], "perf/seconds": 18.25,
           "eval/response_length": evaluation["response_length"]["mean"]}  # fmt: skip
    if "0" in evaluation["win_rates"]:
        row["eval/win_rate"] = evaluation["win_rates"]["0"]["mean"]
    return row
