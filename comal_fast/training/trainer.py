"""The optimiser steps of an iteration, through comal_kernels.prox_loss over packed responses."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Hashable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comal_fast.config import Config
from comal_fast.distributed import checkpoint
from comal_fast.distributed.group import summed
from comal_fast.distributed.sharding import forward_pass, shard
from comal_fast.errors import InputError
from comal_fast.model.activations import activations
from comal_fast.model.head import head_arguments
from comal_fast.model.logps import passed_tokens
from comal_fast.model.packed import packed_attention
from comal_fast.optim import make_optimizer
from comal_fast.plan.check import recomputed_layers
from comal_fast.store.files import read_json, write_json
from comal_fast.system.allocator import give_back
from comal_fast.system.faults import is_out_of_memory
from comal_fast.system.ranks import is_main, world
from comal_fast.system.terminal import console
from comal_fast.training.batches import Group, MicroBatch, epoch_batches, micro_batches
from comal_fast.training.items import Items, hyperparameters, implicit_rewards
from comal_fast.training.ranks_share import my_passes
from comal_kernels import prox_loss
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack
from comal_kernels.transfer import begin_reading, to_device


class Diverged(InputError):
    """A gradient that is no number: no iterate comes of this iteration."""


class Trainer:
    """AdamW steps on one iteration's items. A context manager: packed attention is on inside.

    Under torchrun the model is sharded, and every rank makes a share of each step's passes.
    """

    def __init__(
        self,
        config: Config,
        model: Any,
        items: Items,
        sequences: dict[int, PromptResponse],
        iteration: int,
    ) -> None:
        self.config, self.model, self.iteration = config, model, iteration
        self.items, self.sequences = items, sequences
        training = config.training
        shard(model, model.device)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(trained, training)
        self.schedule = [
            (epoch, batch)
            for epoch in range(training.num_train_epochs)
            for batch in epoch_batches(
                items.groups,
                training.train_batch_size,
                f"{config.seed} train {iteration} {epoch}",
                self._prompt if training.shuffle == "prompts" else None,
            )
        ]
        self.step = 0
        self.skipped = 0  # steps whose gradient was no number
        self.max_tokens = training.max_tokens_per_microbatch  # halved where memory runs out
        self._states = forward_pass(model, predictor_states)

    def _prompt(self, group: Group) -> Hashable:
        return self.sequences[self.items.chosen[group[0]]].prompt

    @property
    def steps(self) -> int:
        """Optimiser steps of the iteration."""
        return len(self.schedule)

    def __enter__(self) -> Trainer:
        with ExitStack() as entered:  # what has been entered is left where the rest can't be
            attention = self.config.model.attn_implementation
            entered.enter_context(packed_attention(self.model, attention))
            entered.callback(self.model.eval)
            self.model.train()
            alone = self.config.training.activation_memory == "auto" and self._one_pass_a_step()
            layers = recomputed_layers(self.model, self.config, self._most_tokens(), alone)
            offload = self.config.training.offload_activations
            entered.enter_context(activations(self.model, layers, offload))
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def _most_tokens(self) -> int:
        """Most tokens of a packed pass: the budget, or a group of items that is longer."""
        sides = [side for side in (self.items.chosen, self.items.rejected) if side]

        def tokens(items: Iterable[int]) -> int:  # all in one pass
            rows = {side[item] for side in sides for item in items}
            return passed_tokens([self.sequences[row] for row in rows], sys.maxsize)

        longest = max(map(tokens, self.items.groups))
        budget = max(self.config.training.max_tokens_per_microbatch, longest)
        return min(budget, tokens(range(len(self.items.chosen))))

    def _one_pass_a_step(self) -> bool:
        """Return whether one pass holds a step, of all steps: then no gradients add up."""
        return all(len(self.passes(batch)) == 1 for _, batch in self.schedule)

    def learning_rate(self, step: int) -> float:
        """The rate of a step (from 0): linear warm-up, then linear decay to zero after the last."""
        warmup = round(self.config.training.warmup_ratio * self.steps)
        if step < warmup:
            share = (step + 1) / (warmup + 1)
        else:
            share = (self.steps - step) / max(1, self.steps - warmup)
        return self.config.training.learning_rate * share

    def optimizer_step(self) -> dict[str, Any]:
        """Go forward, backward and update for the next batch; returns its metrics row.

        A gradient norm that is not finite changes no weight, is counted, and raises Diverged where
        that is one too many.
        """
        start = time.monotonic()
        epoch, batch = self.schedule[self.step]
        text = f"{self.config.seed} step {self.iteration} {self.step}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
        torch.manual_seed(seed)
        rate = self.learning_rate(self.step)
        while (totals := self._accumulate(batch, rate, seed)) is None:
            self._halve(batch)
            torch.manual_seed(seed)
        read = begin_reading(totals)
        norm = self.optimizer.step()  # waits for the device, once a step
        numbers = read()
        row: dict[str, Any] = {"step": self.step + 1, "epoch": epoch + 1}
        if not math.isfinite(norm):
            self._skip(norm)
            numbers = {"perf/tokens": numbers["perf/tokens"]}
        self.step += 1
        row |= summed(numbers)
        if {"rewards/chosen", "rewards/rejected"} <= row.keys():
            row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
        if "loss" in row:
            row |= {"grad_norm": norm, "learning_rate": rate}
        else:
            row |= {"learning_rate": rate, "skipped": self.skipped}
        seconds = time.monotonic() - start
        row |= {"perf/seconds": seconds, "perf/tokens_per_s": row["perf/tokens"] / seconds}
        row["perf/microbatch_tokens"] = self.max_tokens
        return row

    def _accumulate(
        self, batch: Sequence[Group], rate: float, seed: int
    ) -> dict[str, Tensor] | None:
        """Accumulate the gradients of a batch; the step's means. None where memory ran out."""
        totals: dict[str, Tensor] = {}
        weights = self._weights(batch)
        nothing = {name: torch.zeros_like(x) for name, x in weights.items()}
        both = self.items.chosen, self.items.rejected
        passes = my_passes(batch, *both, self.sequences, self.passes)
        try:
            for number, (micro, counts) in enumerate(passes):
                self.optimizer.arm(rate, seed, last=number == len(passes) - 1)
                for name, value in self._backward(micro, weights if counts else nothing).items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value * counts
        except Exception as error:
            if not is_out_of_memory(error) or not self.can_halve:
                raise
            return None
        return totals

    def backward(self, micro: MicroBatch, batch: Sequence[Group]) -> Tensor:
        """The loss () of one pass of a step, whose gradients are left in the parameters."""
        return self._backward(micro, self._weights(batch))["loss"]

    def _skip(self, norm: float) -> None:
        """Count a step whose gradient is no number. Raises Diverged for one too many."""
        training = self.config.training
        if self.skipped >= training.max_skipped_steps:
            raise Diverged(
                f"training: the gradient norm of step {self.step + 1} in iteration "
                f"{self.iteration} is {norm}"
            )
        self.skipped += 1
        console.print(
            f"  [yellow]![/] step {self.step + 1} left out: its gradient norm is {norm} "
            f"({self.skipped} of at most {training.max_skipped_steps})",
            soft_wrap=True,
        )

    @property
    def can_halve(self) -> bool:
        """Whether a step can be done again: alone, and with no weight updated before its end."""
        return world() == 1 and not self.config.training.optimizer_in_backward

    def _halve(self, batch: Sequence[Group]) -> None:
        """After a step ran out of memory: pass half the tokens at a time from now on.

        The same mathematics; sums of gradients go on in another order. Raises InputError where a
        pass holds a single group already.
        """
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        give_back(self.model.device)
        before, failed = self.max_tokens, len(self.passes(batch))
        if failed == len(batch):
            raise InputError(
                f"out of memory in training, and a pass of step {self.step + 1} holds a single "
                "pair already; `comal-fast plan` says what fits, data.max_length leaves out what "
                "does not"
            )
        while len(self.passes(batch)) == failed:
            self.max_tokens //= 2
        console.print(
            f"  [yellow]![/] out of memory in step {self.step + 1}: passes of {self.max_tokens} "
            f"tokens from here on, not {before} (training.max_tokens_per_microbatch)",
            soft_wrap=True,
        )

    def passes(self, batch: Sequence[Group]) -> list[MicroBatch]:
        """The packed passes of a step, as one process makes them."""
        return micro_batches(
            batch,
            self.items.chosen,
            self.items.rejected,
            self.sequences,
            self.max_tokens,
        )

    def _weights(self, batch: Sequence[Group]) -> dict[str, Tensor]:
        """Return (P,) the weight of each item in the step's loss, and in the means of either side.

        In the loss an item weighs its count over the mean count of the iteration's items, so that
        it has the same share of an epoch whatever batch it falls into. The metrics of a side are
        means over the batch, by counts. The sides of a single response are TRL's for unpaired
        data: chosen where P̂(y ≻ π_t) > ½, rejected elsewhere.
        """
        drawn = [item for group in batch for item in group]
        counts = torch.zeros_like(self.items.count)
        counts[drawn] = self.items.count[drawn]
        sides = {"both": counts, "chosen": counts, "rejected": counts}
        if self.items.rejected is None:
            better = self.items.preference > 0.5
            sides |= {"chosen": counts * better, "rejected": counts * ~better}
        shares = {name: side / side.sum() for name, side in sides.items() if side.any()}
        mean = self.items.count.double().mean().item()
        return {"loss": counts / (mean * len(drawn)), **shares}

    def _backward(self, micro: MicroBatch, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Accumulate the gradients of one packed pass; its share of the step's means."""
        config, device = self.config, self.model.device
        packed = pack([self.sequences[row] for row in micro.rows], device)
        hidden = self._states(packed)
        chosen = torch.tensor(micro.chosen)
        rejected = torch.tensor(micro.rejected) if micro.rejected else None
        cached = self.items.cached(micro, device)
        arguments = cached | head_arguments(self.model) | hyperparameters(config)
        shares = {name: to_device(x[micro.items], device) for name, x in weights.items()}
        output = prox_loss(
            hidden,
            target=packed.target,
            cu_seqlens=packed.response_cu_seqlens,
            loss=config.algorithm.prox,
            chosen=chosen,
            rejected=rejected,
            pair_weight=shares["loss"],
            backend=config.training.backend,
            **arguments,
        )
        output.loss.backward()
        rewards = implicit_rewards(config, output.logp, cached)
        gained = output.margin > 0
        if rejected is None:
            gained = gained == to_device(self.items.preference[micro.items] > 0.5, device)
        result = {
            "loss": output.loss.detach(),
            "rewards/accuracies": (shares["both"] * gained).sum(),
            "perf/tokens": torch.tensor(packed.tokens),
        }
        sides = {"chosen": chosen, "rejected": chosen if rejected is None else rejected}
        for side, rows in sides.items():
            if side in shares:
                here = to_device(rows, device)
                result[f"rewards/{side}"] = (shares[side] * rewards[here]).sum()
                result[f"logps/{side}"] = (shares[side] * output.logp[here]).sum()
        return result

    def save(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        """Write what `restore` needs to go on as if nothing had happened. All ranks call it."""
        checkpoint.save(folder, self.model, self.optimizer.inner)
        if is_main():
            state = {
                "step": self.step,
                "skipped": self.skipped,
                "max_tokens": self.max_tokens,
                "rows": rows,
            }
            write_json(folder / "trainer.json", state)

    def restore(self, folder: Path) -> list[dict[str, Any]]:
        """Continue from a checkpoint, of any number of ranks; returns the metrics rows up to it."""
        checkpoint.load(folder, self.model, self.optimizer.inner)
        try:
            state = read_json(folder / "trainer.json")
        except InputError as error:
            why = str(error).split(";")[0]
            raise InputError(f"{why}; delete {folder}, and this iteration trains anew") from None
        self.step, self.skipped = state["step"], state.get("skipped", 0)
        self.max_tokens = min(self.max_tokens, state.get("max_tokens", self.max_tokens))
        return state["rows"]
