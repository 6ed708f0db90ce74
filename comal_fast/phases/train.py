"""train: the prox step, π_{t−1} → π_t, through comal_kernels.prox_loss over packed responses."""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comal_fast.artefacts import folder_key, make_key, read_table, table_key, write_folder
from comal_fast.config import Config
from comal_fast.context import Context
from comal_fast.model.packed import (
    PromptResponse,
    head_arguments,
    pack,
    packed_attention,
    predictor_states,
)
from comal_fast.phases import generate, logps, pair
from comal_fast.phases.batches import MicroBatch, epoch_batches, micro_batches
from comal_fast.terminal import progress
from comal_kernels import ProxOutput, prox_loss


@dataclass(frozen=True)
class TrainingPairs:
    """Columns of pairs.parquet, and per sample row what its cached numbers are."""

    chosen: list[int]
    rejected: list[int]
    preference: list[float]
    sequences: dict[int, PromptResponse]
    ref_logp: list[float | None]
    last_logp: list[float | None]


def path(context: Context, iteration: int) -> Path:
    """The artefact: π_iteration."""
    return context.folder(iteration) / "model"


def hyperparameters(config: Config) -> dict[str, Any]:
    """What the prox loss of this configuration takes."""
    algorithm = config.algorithm
    return {
        "inpo": {"eta": algorithm.eta, "tau_eta_ratio": algorithm.tau_eta_ratio},
        "ipo": {"eta": algorithm.eta},
        "dpo": {"beta": algorithm.beta, "label_smoothing": algorithm.label_smoothing},
    }[algorithm.prox]


def run(context: Context, iteration: int) -> None:
    """Write iterations/NNNN/model from the pairs and their cached log-probs."""
    config = context.config
    training = asdict(config.training)
    save_steps = training.pop("save_steps")
    wanted = make_key(
        "train",
        context.model_key(iteration - 1),
        table_key(pair.path(context, iteration)),
        table_key(logps.path(context, iteration)),
        [config.algorithm.prox, hyperparameters(config), config.pairing.soft_labels],
        training,
        config.seed,
    )
    if folder_key(path(context, iteration)) == wanted:
        return
    metrics = context.metrics("train", iteration)
    pairs = _load_pairs(context, iteration)
    model = context.take_model(iteration - 1)
    trainer = Trainer(config, model, pairs, iteration)
    checkpoint = context.folder(iteration) / "checkpoint"
    rows: list[dict[str, Any]] = []
    if folder_key(checkpoint) == wanted:
        rows = trainer.restore(checkpoint)
        metrics.replay(rows)
    description = f"train π_{iteration} ({config.algorithm.prox})"
    with progress(description, trainer.steps, "steps") as advance, trainer:
        advance(trainer.step)
        while trainer.step < trainer.steps:
            rows.append(metrics.log(**trainer.optimiser_step()))
            advance()
            if save_steps and trainer.step % save_steps == 0 and trainer.step < trainer.steps:
                with write_folder(checkpoint, wanted) as temporary:
                    trainer.save(temporary, rows)
    with write_folder(path(context, iteration), wanted) as temporary:
        model.save_pretrained(temporary)
        context.tokenizer.save_pretrained(temporary)
    context.discard(checkpoint)
    context.put_model(iteration, model)
    context.note("train", iteration)


def _load_pairs(context: Context, iteration: int) -> TrainingPairs:
    pairs = read_table(pair.path(context, iteration)).to_pydict()
    cached = read_table(logps.path(context, iteration)).to_pydict()
    used = sorted({*pairs["chosen"], *pairs["rejected"]})
    samples = read_table(generate.path(context, iteration))
    sequences = dict(zip(used, logps.prompt_responses(samples, used), strict=True))
    return TrainingPairs(
        pairs["chosen"],
        pairs["rejected"],
        pairs["preference"],
        sequences,
        cached["ref_logp"],
        cached["last_logp"],
    )


class Trainer:
    """AdamW steps on one iteration's pairs. A context manager: packed attention is on inside."""

    def __init__(self, config: Config, model: Any, pairs: TrainingPairs, iteration: int) -> None:
        self.config, self.model, self.pairs, self.iteration = config, model, pairs, iteration
        training = config.training
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.schedule = [
            (epoch, batch)
            for epoch in range(training.num_train_epochs)
            for batch in epoch_batches(
                len(pairs.chosen),
                training.train_batch_size,
                f"{config.seed} train {iteration} {epoch}",
            )
        ]
        self.lengths = {row: len(s) for row, s in pairs.sequences.items()}
        self.step = 0
        self._packed = packed_attention(model, config.model.attn_implementation)

    @property
    def steps(self) -> int:
        """Optimiser steps of the iteration."""
        return len(self.schedule)

    def __enter__(self) -> Trainer:
        self._packed.__enter__()
        self.model.train()
        if self.config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        return self

    def __exit__(self, *error: Any) -> None:
        if self.config.training.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        self.model.eval()
        self._packed.__exit__(*error)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero after the last step."""
        warmup = round(self.config.training.warmup_ratio * self.steps)
        if step < warmup:
            share = (step + 1) / (warmup + 1)
        else:
            share = (self.steps - step) / max(1, self.steps - warmup)
        return self.config.training.learning_rate * share

    def optimiser_step(self) -> dict[str, Any]:
        """Forward, backward and update for the next batch; its metrics row."""
        start = time.monotonic()
        config = self.config.training
        epoch, batch = self.schedule[self.step]
        seed = f"{self.config.seed} step {self.iteration} {self.step}"
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
        if self.model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.model.device)
        totals: dict[str, Tensor] = {}
        tokens = 0
        for micro in micro_batches(
            batch,
            self.pairs.chosen,
            self.pairs.rejected,
            self.lengths,
            config.max_tokens_per_microbatch,
        ):
            tokens += sum(self.lengths[row] for row in micro.rows)
            for name, value in self._backward(micro, len(batch)).items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value
        limit = config.max_grad_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        rate = self.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        row: dict[str, Any] = {"step": self.step, "epoch": epoch + 1}
        row |= {name: float(value) for name, value in totals.items()}
        row |= {"grad_norm": float(norm), "learning_rate": rate}
        if not torch.isfinite(norm):
            raise ValueError(
                f"training: the gradient norm of step {self.step} in iteration {self.iteration} is "
                f"{float(norm)}; lower training.learning_rate or look at the data of this batch"
            )
        seconds = time.monotonic() - start
        row |= {"perf/seconds": seconds, "perf/tokens_per_s": tokens / seconds}
        row["mem/peak_gib"] = self._peak_bytes() / 2**30
        return row

    def _peak_bytes(self) -> int:
        """Of this step on a GPU; of the process so far on the CPU."""
        if self.model.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.model.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux

    def _backward(self, micro: MicroBatch, batch_pairs: int) -> dict[str, Tensor]:
        """Accumulate the gradients of one packed pass; its share of the step's means."""
        config, pairs = self.config, self.pairs
        packed = pack([pairs.sequences[row] for row in micro.rows], self.model.device)
        hidden = predictor_states(self.model, packed)
        ref, last = (
            torch.tensor([column[row] for row in micro.rows], dtype=torch.float32).to(hidden.device)
            for column in (pairs.ref_logp, pairs.last_logp)
        )
        labels = None
        if config.pairing.soft_labels:
            labels = torch.tensor([pairs.preference[p] for p in micro.pairs]).to(hidden.device)
        chosen, rejected = torch.tensor(micro.chosen), torch.tensor(micro.rejected)
        output = prox_loss(
            hidden,
            target=packed.target,
            cu_seqlens=packed.response_cu_seqlens,
            loss=config.algorithm.prox,
            chosen=chosen,
            rejected=rejected,
            ref_logp=ref,
            last_logp=last if config.algorithm.prox == "inpo" else None,
            preference=labels,
            pair_weight=torch.full((len(micro.pairs),), 1 / batch_pairs, device=hidden.device),
            backend=config.training.backend,
            **head_arguments(self.model),
            **hyperparameters(config),
        )
        output.loss.backward()
        anchor, scale = ref, 1.0
        if config.algorithm.prox == "inpo":
            ratio = config.algorithm.tau_eta_ratio
            anchor = ratio * ref + (1 - ratio) * last
        elif config.algorithm.prox == "dpo":
            scale = config.algorithm.beta
        rewards = scale * (output.logp - anchor)
        return _shares(output, rewards, chosen, rejected, batch_pairs)

    def save(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """What `restore` needs to go on as if nothing had happened."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "rows": rows,
        }
        torch.save(state, folder / "state.pt")

    def restore(self, folder: Path) -> list[dict[str, Any]]:
        """Continue from a checkpoint; the metrics rows up to it."""
        state = torch.load(folder / "state.pt", map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return state["rows"]


def _shares(
    output: ProxOutput, rewards: Tensor, chosen: Tensor, rejected: Tensor, batch_pairs: int
) -> dict[str, Tensor]:
    """TRL's metric names, as sums over these pairs divided by the pairs of the whole step."""
    chosen, rejected = chosen.to(rewards.device), rejected.to(rewards.device)
    margins = rewards[chosen] - rewards[rejected]
    per_pair = {
        "rewards/chosen": rewards[chosen],
        "rewards/rejected": rewards[rejected],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
        "logps/chosen": output.logp[chosen],
        "logps/rejected": output.logp[rejected],
    }
    means = {name: values.sum() / batch_pairs for name, values in per_pair.items()}
    return {"loss": output.loss.detach(), **means}
