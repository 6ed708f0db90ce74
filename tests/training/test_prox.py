"""Each prox in the trainer: what it reads, its labels and gradients, its minimiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from comal_fast.config import Config, load_config
from comal_fast.config.schema import build
from comal_fast.config.validate import prox_options, target_of
from comal_fast.game.pair_selection import label_matrix, target_margins
from comal_fast.loop import open_run, run_here
from comal_fast.model.load import load_model
from comal_fast.phases import train
from comal_fast.training.batches import micro_batches
from comal_fast.training.items import Items, hyperparameters, make_items, uses_margins
from comal_fast.training.trainer import Trainer
from comal_kernels import PROX, prox_loss
from comal_kernels.packing import PromptResponse

# The step of each, large enough that no term of its loss vanishes beside the others.
OPTIONS = {
    "inpo": ["algorithm.eta=0.5", "algorithm.tau_eta_ratio=0.3", "pairing.labels=soft"],
    "ipo": ["algorithm.eta=0.5", "pairing.labels=soft"],
    "dpo": ["algorithm.beta=0.5", "algorithm.label_smoothing=0.1", "pairing.labels=soft"],
    "sppo": ["algorithm.eta=0.5", "algorithm.tau_eta_ratio=0.3", "algorithm.log_z=samples"],
    "dro": ["algorithm.eta=0.5", "algorithm.tau_eta_ratio=0.3", "training.train_batch_size=6"],
    "rebel": ["algorithm.eta=0.5", "algorithm.tau_eta_ratio=0.3"],
}
IGNORED = {
    "eta": ("algorithm: {eta: 0.05, ", "algorithm: {"),
    "strategy": ("pairing: {strategy: all}\n", ""),
}


def config_of(prox: str, tiny_run: Path, *more: str) -> Config:
    """The tiny run's, without what this prox would refuse."""
    text = tiny_run.read_text()
    text = text.replace(*IGNORED["eta"])
    if "pairing.strategy" not in prox_options(_config(prox)):
        text = text.replace(*IGNORED["strategy"])
    tiny_run.write_text(text)
    return load_config(tiny_run, [f"algorithm.prox={prox}", *OPTIONS[prox], *more])


def plain_loss(config: Config, folder: Path, logps: Tensor) -> Tensor:
    """The whole iteration's loss from the tables and `logps` (N,), as the papers write it."""
    samples, judgments, cached = (
        pq.read_table(folder / f"{name}.parquet").to_pylist()
        for name in ("samples", "judgments", "logps")
    )
    options = config.algorithm.model_dump()
    eta, ratio = options.get("eta", 1.0), options.get("tau_eta_ratio", 0.0)
    beta, smoothing = options.get("beta"), options.get("label_smoothing")
    losses: dict[int, list[Tensor]] = {}
    for judged in judgments:
        rows = [i for i, s in enumerate(samples) if s["prompt_id"] == judged["prompt_id"]]
        size = len(rows)
        p = np.array(judged["matrix"]).reshape(size, size)
        ref, last = ([cached[r][f"{n}_logp"] for r in rows] for n in ("ref", "last"))
        now = [logps[r] for r in rows]
        others = [[p[i, j] for j in range(size) if j != i] for i in range(size)]
        reward = [np.mean(others[i]) - ratio * eta * (last[i] - ref[i]) for i in range(size)]
        said = [(samples[r]["prompt_id"], samples[r]["response_ids"]) for r in rows]
        pairs = [(i, j) for i in range(size) for j in range(i) if said[i] != said[j]]
        here = losses.setdefault(judged["prompt_id"], [])
        for i, j in pairs:
            h, h_ref, h_last = (x[i] - x[j] for x in (now, ref, last))
            label = (2 * p[i, j] - 1) / (2 * eta)
            if config.algorithm.prox == "inpo":
                here.append((h - ratio * h_ref - (1 - ratio) * h_last - label) ** 2)
            if config.algorithm.prox == "ipo":
                here.append((h - h_ref - label) ** 2)
            if config.algorithm.prox == "dpo":
                q = p[i, j] * (1 - smoothing) + (1 - p[i, j]) * smoothing
                v = beta * (h - h_ref)
                here.append(-q * torch.log(v.sigmoid()) - (1 - q) * torch.log((-v).sigmoid()))
            if config.algorithm.prox == "rebel":
                here.append((eta * (h - h_last) - (reward[i] - reward[j])) ** 2)
        gained = [now[i] - last[i] for i in range(size)]
        if config.algorithm.prox == "sppo":
            log_z = np.log(np.mean([np.exp((r - 0.5) / eta) for r in reward]))
            here += [(gained[i] - (reward[i] - 0.5) / eta + log_z) ** 2 for i in range(size)]
        if config.algorithm.prox == "dro":
            errors = [reward[i] - eta * gained[i] for i in range(size)]
            value = torch.stack(errors).mean().detach()
            here += [0.5 * (error - value) ** 2 for error in errors]
    everything = [x for group in losses.values() for x in group]
    return torch.stack(everything).mean()


def plain_logps(model: Any, folder: Path) -> Tensor:
    """(N,) of every sample, from whole logits, one after another."""
    result = []
    for s in pq.read_table(folder / "samples.parquet").to_pylist():
        ids = [*s["prompt_ids"], *s["response_ids"]]
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(s["prompt_ids"]) - 1
        result.append(logp[range(start, len(ids) - 1), s["response_ids"]].sum())
    return torch.stack(result)


@pytest.mark.parametrize("prox", PROX)
def test_trains_by_the_papers_gradient(prox: str, tiny_run: Path) -> None:
    """Two iterations; in the second, where π_ref ≠ π_t, loss and gradients equal plain torch's.

    Responses are so short and cold that some are equal: plain torch goes through every sample.
    """
    cold = ["generation.temperature=0.1", "generation.num_generations=6", "seed=2"]
    cold += ["generation.max_new_tokens=4"]
    config = config_of(prox, tiny_run, *cold)
    with open_run(config) as context:
        for iteration in (1, 2):
            for phase in ("generate", "judge", "pair", "logps", "train"):
                run_here(context, phase, iteration)
    rows = [json.loads(line) for line in (context.directory.path / "metrics.jsonl").open()]
    steps = [row for row in rows if row["phase"] == "train"]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    names = set().union(*steps)
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"} <= names

    items, sequences = train.load_items(context, 2)
    assert items.count.max() > 1 and items.count.min() == 1
    model = load_model(config.model, str(context.directory.iteration(1).path / "model"))
    for parameter in model.parameters():  # away from π_t, where some losses have no gradient yet
        parameter.data += 0.01 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(0)
        )
    trainer = Trainer(config, model, items, sequences, 2)
    with trainer:
        parts = micro_batches(items.groups, items.chosen, items.rejected, trainer.sequences, 100)
        weights = trainer._weights(items.groups)
        loss = sum(trainer._backward(part, weights)["loss"].item() for part in parts)
    assert len(parts) > 1
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = plain_loss(
        config,
        context.directory.iteration(2).path,
        plain_logps(model, context.directory.iteration(2).path),
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert (ours[name] - parameter.grad).abs().max() <= 1e-4 * scale + 1e-7, name


def synthetic(config: Config, rows: int = 12, prompts: int = 1, seed: int = 0) -> Items:
    """Items over random numbers, `rows` samples a prompt; all pairs, or all responses."""
    g = np.random.default_rng(seed)
    count = rows * prompts
    prompt = np.repeat(np.arange(prompts), rows)
    upper = np.triu(g.random((rows, rows)), 1)
    p = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(rows)
    ref, last = g.normal(size=(2, count)) - 2
    win = np.tile(p.mean(axis=1), prompts)
    pairwise = PROX[config.algorithm.prox].pairwise
    pairs = [(i, j) for i in range(count) for j in range(i) if prompt[i] == prompt[j]]
    chosen, rejected = zip(*pairs, strict=True)
    labels = label_matrix(p, config.pairing.labels, range(rows))
    preference = np.array([p[i % rows, j % rows] for i, j in pairs]) if pairwise else win
    if pairwise and config.pairing.labels == "sampled":
        preference = np.array([labels[i % rows, j % rows] for i, j in pairs])
    target, alike = target_of(config), [(i % rows, j % rows) for i, j in pairs]
    return make_items(
        config,
        chosen=list(chosen) if pairwise else list(range(count)),
        rejected=list(rejected) if pairwise else None,
        preference=preference,
        margin=target_margins(labels, alike, target) if uses_margins(config) else None,
        count=np.ones(len(pairs) if pairwise else count),
        prompt=prompt,
        win_rate=win,
        ref_logp=ref,
        last_logp=last,
    )


def given(config: Config) -> dict[str, Any]:
    """All that prox_loss would be given, comparable by ==."""
    items = synthetic(config)
    tensors = {n: x.tolist() for n, x in (items.per_row | items.per_item).items()}
    return tensors | hyperparameters(config)


CHANGES: dict[str, Any] = {
    "algorithm.eta": 0.7,
    "algorithm.tau_eta_ratio": 0.6,
    "algorithm.beta": 0.3,
    "algorithm.label_smoothing": 0.2,
    "algorithm.log_z": "zero",
    "pairing.labels": "hard",
    "pairing.target": "cross_fit",
}


def _config(prox: str) -> Config:
    return build({"model": {"name_or_path": "none"}, "algorithm": {"prox": prox}})


@pytest.mark.parametrize("prox", PROX)
def test_reads_exactly_the_options_it_admits_to(prox: str) -> None:
    """What a prox may be given changes what the loss gets; what it may not be given, nothing.

    pairing.strategy acts before, in the choice of pairs.
    """
    config = _config(prox)
    before, reads = given(config), set(prox_options(config)) - {"pairing.strategy"}
    acting = {n for n in reads if given(_replaced(config, n, CHANGES[n])) != before}
    assert acting == reads
    labels = given(_replaced(config, "pairing.labels", "sampled")) != before
    assert labels == ("pairing.labels" in reads)
    assert ("pairing.strategy" in config.algorithm.pairing) == PROX[prox].pairwise


def test_every_option_of_a_prox_is_tried() -> None:
    every = set().union(*(prox_options(_config(prox)) for prox in PROX))
    assert every - {"pairing.strategy"} == set(CHANGES)


def _replaced(config: Config, name: str, value: Any) -> Config:
    group, leaf = name.split(".")
    part = getattr(config, group).model_copy(update={leaf: value})
    return config.model_copy(update={group: part})


@pytest.mark.parametrize("prox", ["inpo", "sppo", "dro", "rebel"])
def test_minimiser_is_inpos_closed_form(prox: str, tiny_run: Path) -> None:
    """On equally likely samples: π ∝ π_t^(1−τ/η) π_ref^(τ/η) exp(P(y ≻ π_t)/η)."""
    config = config_of(prox, tiny_run, "training.train_batch_size=8")
    n, eta, ratio = 6, config.algorithm.eta, config.algorithm.tau_eta_ratio
    g = np.random.default_rng(3)
    upper = np.triu(g.random((n, n)), 1)
    p = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
    ref = torch.tensor(g.normal(size=n)).log_softmax(0).numpy()
    last = np.full(n, -np.log(n))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    pairwise = PROX[prox].pairwise
    items = make_items(
        config,
        chosen=[i for i, _ in pairs] if pairwise else list(range(n)),
        rejected=[j for _, j in pairs] if pairwise else None,
        preference=[p[i, j] for i, j in pairs] if pairwise else p.mean(axis=1),
        count=np.ones(len(pairs) if pairwise else n),
        prompt=np.zeros(n),
        win_rate=p.mean(axis=1),
        ref_logp=ref,
        last_logp=last,
    )
    theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=300, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        out = prox_loss(
            torch.ones(n, 1, dtype=torch.float64),
            theta,
            torch.arange(n),
            torch.arange(n + 1),
            loss=prox,
            chosen=torch.tensor(items.chosen),
            rejected=None if items.rejected is None else torch.tensor(items.rejected),
            **items.per_row,
            **items.per_item,
            **hyperparameters(config),
        )
        out.loss.backward()
        return out.loss

    optimizer.step(closure)
    wanted = ratio * ref + (1 - ratio) * last + p.mean(axis=1) / eta
    found = theta.detach()[:, 0].softmax(0)
    assert (found - torch.tensor(wanted).softmax(0)).abs().max() <= 1e-6


def test_dro_needs_whole_prompts(tiny_run: Path) -> None:
    with pytest.raises(ValueError, match=r"train_batch_size: 2 is less than .*=3; prox dro takes"):
        config_of("dro", tiny_run, "training.train_batch_size=2")
    items = synthetic(config_of("dro", tiny_run), rows=3, prompts=4)
    assert items.groups == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


@pytest.mark.parametrize("prox", ["inpo", "sppo"])
def test_a_prompts_items_share_its_tokens(prox: str, tiny_run: Path) -> None:
    """`perf/tokens` are those that reach the embedding; shuffled by prompts, they are fewer."""
    g = np.random.default_rng(0)
    prompts = [g.integers(5, 250, 9).tolist() for _ in range(3)]
    sequences = {
        row: PromptResponse(prompts[row // 4], g.integers(5, 250, 6).tolist()) for row in range(12)
    }
    used = {}
    for shuffle in ("items", "prompts"):
        options = [f"training.shuffle={shuffle}", "training.train_batch_size=6"]
        config = config_of(prox, tiny_run, *options)
        items = synthetic(config, rows=4, prompts=3)
        model = load_model(config.model)
        seen: list[int] = []
        model.get_input_embeddings().register_forward_hook(
            lambda _, inputs, __, seen=seen: seen.append(inputs[0].numel())
        )
        with Trainer(config, model, items, sequences, 1) as trainer:
            rows = [trainer.optimizer_step() for _ in range(trainer.steps)]
        assert sum(seen) == sum(row["perf/tokens"] for row in rows)
        assert all(row["perf/tokens_per_s"] > 0 for row in rows)
        used[shuffle] = sum(seen)
    assert used["prompts"] < used["items"]
    if prox == "inpo":  # all 6 pairs of a prompt are a step: everything runs once an epoch
        assert used["prompts"] == config.training.num_train_epochs * 3 * (9 + 4 * 5)
