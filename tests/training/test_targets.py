"""pairing.target and pairing.labels in a real run: pairs, margins and gradients by plain code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from comal_fast.config import Config, load_config
from comal_fast.loop import open_run, run_here
from comal_fast.model.load import load_model
from comal_fast.phases import train
from comal_fast.training.batches import micro_batches
from comal_fast.training.history import step
from comal_fast.training.items import hyperparameters, make_items
from comal_fast.training.trainer import Trainer
from comal_kernels import prox_loss

COMMON = [
    "generation.num_generations=5",  # odd: halves of three and two
    "generation.temperature=0.2",
    "generation.max_new_tokens=4",  # so short and cold that some texts come twice
    "oracle.target_words=2",
    "algorithm.iterations=2",
    "seed=2",
]
RUN_PHASES = ("generate", "judge", "pair", "logps", "train")


def run_iterations(config: Config) -> Any:
    """Run both iterations; the context is closed, its files stay."""
    with open_run(config) as context:
        for iteration in (1, 2):
            for phase in RUN_PHASES:
                run_here(context, phase, iteration)
    return context


def plain_pairs(matrix: np.ndarray, texts: list[Any]) -> list[tuple[int, int, float]]:
    """Best and worst of each half by its own win rates; the margin against the other half."""
    found = []
    for mine, others in (
        (slice(0, None, 2), slice(1, None, 2)),
        (slice(1, None, 2), slice(0, None, 2)),
    ):
        members = list(range(len(matrix)))[mine]
        wins = {
            i: sum(matrix[i, j] for j in members if j != i) / (len(members) - 1) for i in members
        }
        best = max(members, key=lambda i: (wins[i], -i))
        first = [i for i in members if texts[i] not in [texts[j] for j in members if j < i]]
        worst = min(first, key=lambda i: (wins[i], -i))
        if texts[best] == texts[worst]:
            continue
        if matrix[best, worst] < 0.5:
            best, worst = worst, best
        found.append((best, worst, float((matrix[best, others] - matrix[worst, others]).mean())))
    return found


def plain_logps(model: Any, samples: list[dict[str, Any]]) -> Tensor:
    """(N,) of every sample, from whole logits, one after another."""
    result = []
    for s in samples:
        ids = [*s["prompt_ids"], *s["response_ids"]]
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(s["prompt_ids"]) - 1
        result.append(logp[range(start, len(ids) - 1), s["response_ids"]].sum())
    return torch.stack(result)


@pytest.mark.parametrize("prox", ["inpo", "ipo", "rebel"])
def test_cross_fitted_gradients(prox: str, tiny_run: Path) -> None:
    text = tiny_run.read_text().replace("pairing: {strategy: all}\n", "")
    tiny_run.write_text(text)
    options = [f"algorithm.prox={prox}", "pairing.strategy=best_worst", "algorithm.eta=0.5"]
    config = load_config(tiny_run, [*COMMON, *options])
    context = run_iterations(config)
    folder = context.directory.iteration(2)
    samples, judged, cached = (
        table.read().to_pylist() for table in (folder.samples, folder.judgments, folder.logps)
    )
    model = load_model(config.model, str(context.directory.iteration(1).path / "model"))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    items, sequences = train.load_items(context, 2)
    with Trainer(config, model, items, sequences, 2) as trainer:
        parts = micro_batches(items.groups, items.chosen, items.rejected, trainer.sequences, 100)
        loss = sum(trainer.backward(part, items.groups).item() for part in parts)
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    now = plain_logps(model, samples)
    losses = []
    ratio = getattr(config.algorithm, "tau_eta_ratio", None)
    for row in judged:
        rows = [i for i, s in enumerate(samples) if s["prompt_id"] == row["prompt_id"]]
        matrix = np.array(row["matrix"]).reshape(len(rows), len(rows))
        texts = [samples[i]["response_ids"] for i in rows]
        for a, b, margin in plain_pairs(matrix, texts):
            a, b = rows[a], rows[b]
            h = now[a] - now[b]
            ref, last = (cached[a][f"{n}_logp"] - cached[b][f"{n}_logp"] for n in ("ref", "last"))
            if prox == "ipo":
                losses.append((h - ref - margin / 0.5) ** 2)
            else:
                mix = ratio * ref + (1 - ratio) * last
                scale = 0.5 if prox == "rebel" else 1.0  # rebel's square is of rewards
                losses.append((scale * (h - mix - margin / 0.5)) ** 2)
    expected = torch.stack(losses).mean()
    expected.backward()
    assert len(losses) > 4 and sum(items.count.tolist()) == len(losses)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert (ours[name] - parameter.grad).abs().max() <= 1e-4 * scale + 1e-7, name


def test_labels_that_are_drawn_are_the_same_again(tiny_run: Path, tmp_path: Path) -> None:
    """With one seed, in another folder; with another seed they differ; they are 0 or 1."""
    drawn = {}
    for name, seed in (("one", 2), ("again", 2), ("other", 3)):
        options = [
            *COMMON,
            f"seed={seed}",
            f"output_dir={tmp_path / name}",
            "pairing.labels=sampled",
        ]
        # one policy's samples for all: the first iteration's come of the seed too
        config = load_config(tiny_run, options)
        with open_run(config) as context:
            for phase in ("generate", "judge", "pair"):
                run_here(context, phase, 1)
        table = context.directory.iteration(1).pairs.read()
        drawn[name] = table.to_pydict()
        assert table["margin"].null_count == len(table)
        single = [
            p
            for p, c in zip(drawn[name]["preference"], drawn[name]["count"], strict=True)
            if c == 1
        ]
        assert set(single) <= {0.0, 1.0} and len(set(single)) == 2
    assert drawn["one"] == drawn["again"] != drawn["other"]


def test_an_item_weighs_the_same_in_every_batch(tiny_run: Path) -> None:
    """Times its batch's size, an item's weight is its share of all draws, whatever the batch."""
    config = load_config(tiny_run, [*COMMON, "training.train_batch_size=3"])
    context = run_iterations(config)
    items, sequences = train.load_items(context, 2)
    assert items.count.max() > 1
    with Trainer(config, load_model(config.model), items, sequences, 2) as trainer:
        batches = [batch for epoch, batch in trainer.schedule if epoch == 0]
        total = sum(trainer._weights(batch)["loss"] * sum(map(len, batch)) for batch in batches)
    shares = total / total.sum()
    wanted = items.count / items.count.sum()
    torch.testing.assert_close(shares.double(), wanted.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["algorithm.prox=dpo", "pairing.target=win_rate"],
            "pairing.target: win_rate is for square",
        ),
        (["algorithm.prox=sppo", "pairing.labels=soft"], "pairing.labels: prox sppo ignores it"),
        (["pairing.target=cross_fit", "generation.num_generations=2"], "of 3 or more"),
        (["pairing.target=half"], "pairing.target"),
        (["pairing.labels=soft", "pairing.soft_labels=true"], "older spelling of pairing.labels"),
        (["pairing.soft_labels=maybe"], "pairing.soft_labels: expected true or false"),
        (["data={pairs: x.jsonl}", "pairing.labels=sampled"], "people's own verdicts"),
    ],
)
def test_what_does_not_go_together(tiny_run: Path, options: list[str], message: str) -> None:
    text = tiny_run.read_text().replace("pairing: {strategy: all}\n", "")
    tiny_run.write_text(text.replace("eta: 0.05, ", "").replace("iterations: 2, ", ""))
    if any("pairs" in option for option in options):
        text = tiny_run.read_text().splitlines()
        text = [line for line in text if not line.startswith(("data:", "generation:", "oracle:"))]
        tiny_run.write_text("\n".join(text))
    with pytest.raises(ValueError, match=message):
        load_config(tiny_run, options)


def test_the_older_spelling_keeps_its_meaning(tiny_run: Path) -> None:
    hard = load_config(tiny_run, ["pairing.soft_labels=false", "pairing.strategy=best_worst"])
    assert (hard.pairing.labels, hard.pairing.target) == ("hard", "label")
    soft = load_config(tiny_run, ["pairing.soft_labels=true", "pairing.strategy=best_worst"])
    assert (soft.pairing.labels, soft.pairing.target) == ("soft", "label")
    rebel = load_config(tiny_run, ["pairing.soft_labels=false", "algorithm.prox=rebel"])
    assert (rebel.pairing.labels, rebel.pairing.target) == ("soft", "win_rate")


@pytest.mark.parametrize("method", ["onpo", "mnpo", "heavy_ball"])
def test_log_z_is_a_mean_under_what_the_step_starts_from(tiny_run: Path, method: str) -> None:
    """With every response once among the samples of a uniform π_t, sppo's step is exact.

    X is the policy that the step starts from, an unnormalised mean of iterates. With Z under π_t
    the minimiser is another one.
    """
    text = tiny_run.read_text().replace("pairing: {strategy: all}\n", "")
    tiny_run.write_text(text)
    options = ["algorithm.prox=sppo", "algorithm.eta=0.5", f"algorithm.method={method}"]
    config = load_config(tiny_run, options)
    n, g = 6, np.random.default_rng(4)
    upper = np.triu(g.random((n, n)), 1)
    p = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)
    reference = torch.tensor(g.normal(size=n)).log_softmax(0).numpy()
    policy = np.full(n, -np.log(n))
    start = 0.4 * policy + 0.6 * torch.tensor(3 * g.normal(size=n)).log_softmax(0).numpy()
    eta, ratio = step(config)
    wanted = torch.tensor((1 - ratio) * start + ratio * reference + p.mean(axis=1) / eta)

    def minimiser(policy_logp: np.ndarray | None) -> Tensor:
        items = make_items(
            config,
            chosen=list(range(n)),
            rejected=None,
            preference=p.mean(axis=1),
            count=np.ones(n),
            prompt=np.zeros(n),
            win_rate=p.mean(axis=1),
            ref_logp=reference,
            last_logp=start,
            policy_logp=policy_logp,
        )
        theta = torch.zeros(n, 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [theta],
            max_iter=300,
            tolerance_grad=1e-12,
            tolerance_change=1e-18,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = prox_loss(
                torch.ones(n, 1, dtype=torch.float64),
                theta,
                torch.arange(n),
                torch.arange(n + 1),
                loss="sppo",
                chosen=torch.tensor(items.chosen),
                **items.per_row,
                **items.per_item,
                **hyperparameters(config),
            ).loss
            loss.backward()
            return loss

        optimizer.step(closure)
        return theta.detach()[:, 0].softmax(0)

    assert (minimiser(policy) - wanted.softmax(0)).abs().max() <= 1e-6
    assert (minimiser(None) - wanted.softmax(0)).abs().max() > 1e-4


def test_log_probs_of_the_sampled_policy_are_kept_beside_the_mean(tiny_run: Path) -> None:
    config = load_config(tiny_run, [*COMMON, "algorithm.method=mnpo", "algorithm.history=2"])
    context = run_iterations(config)
    first, second = (context.directory.iteration(t).logps.read() for t in (1, 2))
    assert "policy_logp" not in first.column_names  # the mean is π_0 itself
    mean, policy, reference = (
        np.array(second[f"{name}_logp"].to_pylist(), dtype=float)
        for name in ("last", "policy", "ref")
    )
    used = ~np.isnan(mean)
    assert used.any()
    np.testing.assert_allclose(mean[used], (policy[used] + reference[used]) / 2, rtol=1e-12)
