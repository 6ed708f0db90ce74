"""DPOTrainer with a prox loss over packed rows, and log-probs of fixed policies from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import hash_module, use_adapter

from comal_kernels.checks import refuse
from comal_kernels.integrations.transformers import (
    LMHead,
    accept_objective,
    packed_attention,
    plain,
)
from comal_kernels.integrations.trl.config import ProxConfig
from comal_kernels.integrations.trl.logps import (
    columns,
    file_of,
    logps_key,
    read_logps,
    with_columns,
    write_logps,
)
from comal_kernels.integrations.trl.metrics import STATISTICS, batch_sums, named_means
from comal_kernels.packing.collator import COLUMNS, PreferenceCollator
from comal_kernels.packing.responses import pack_responses
from comal_kernels.prox_loss.api import prox_loss
from comal_kernels.row import Terms

MODEL_INPUTS = ("input_ids", "attention_mask")
POLICIES = ("ref", "last")


class ProxTrainer(DPOTrainer):
    """DPOTrainer whose loss is `args.prox`; its arguments, data formats and metrics are TRL's.

    The reference is TRL's: `ref_model`, or the policy that training starts from. The last iterate
    of inpo, sppo and rebel is the policy that training starts from. Their log-probs are computed
    before training and kept in `args.logps_dir`, unless the dataset has `ref_chosen_logps`,
    `ref_rejected_logps`, `last_chosen_logps` and `last_rejected_logps`: sums over a response, nats.

    More columns, where the loss reads them: `preference`, P(chosen ≻ rejected) of dpo, ipo and
    inpo (1 without it); `chosen_preference` and `rejected_preference`, P̂(y ≻ π_t), of sppo;
    `chosen_reward` and `rejected_reward` of dro and rebel.

    `rewards/*` are the implicit rewards that the loss measures from its reference (dpo's times β).

    Raises ValueError for what packing or the head can't do exactly, and for arguments that would
    be ignored.
    """

    _tag_names = ["trl", "dpo", "comal-kernels"]
    args: ProxConfig
    model: Any
    ref_model: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: ProxConfig | None = None,
        data_collator: Any = None,
        **options: Any,
    ) -> None:
        args = args or ProxConfig("prox")
        if not isinstance(args, ProxConfig):
            refuse("args", f"a {type(args).__name__}", "a ProxConfig")
        if options.get("compute_metrics") is not None:
            refuse("compute_metrics", "there are no logits to give it", "None")
        if not isinstance(data_collator, PreferenceCollator | None):
            refuse("data_collator", f"a {type(data_collator).__name__}", "a PreferenceCollator")
        if data_collator is None:
            multiple: Any = args.pad_to_multiple_of  # a number, once DPOConfig has read it
            data_collator = PreferenceCollator(
                max_length=args.max_length,
                truncation_mode=args.truncation_mode,
                packing=args.packing,
                share=args.share_prompts,
                pad_to_multiple_of=multiple,
            )
        self.row, self.hyper = args.row, args.hyperparameters
        if args.deepspeed_plugin is not None:
            refuse("args", "DeepSpeed holds the head in pieces", "DDP or FSDP")
        super().__init__(model, ref_model, args, data_collator, **options)
        self._accept()
        self._check_columns()

    def _accept(self) -> None:
        """Once, after DPOTrainer has made the models and before anything runs them."""
        if getattr(self, "_accepted", False):
            return
        self._accepted = True
        if self.aux_loss_enabled:
            refuse("router_aux_loss_coef", "a loss of experts' loads is not added", "0.0")
        if self._is_vision_dataset:
            refuse("train_dataset", "it holds images", "text")
        adapter: Any = getattr(self.model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            refuse("peft_config", f"{adapter.peft_type} puts tokens before a row", "LoRA's kind")
        accept_objective(self.model)
        if self.ref_model is not None:  # may be sharded already: the same head by its class
            accept_objective(self.accelerator.unwrap_model(self.ref_model), check=False)
        with self._attention():  # refuses what can't be packed
            pass

    def _check_columns(self) -> None:
        """Raise ValueError where the loss reads a column that the datasets do not have."""
        held = self.eval_dataset
        for dataset in (self.train_dataset, *(held.values() if isinstance(held, dict) else [held])):
            names = getattr(dataset, "column_names", None)
            for term in ("reward", "preference"):  # those that nothing here computes
                lacks = names is not None and not {*COLUMNS[term]} <= {*names}
                if term in self.row.uses and lacks:
                    wanted = " and ".join(COLUMNS[term])
                    refuse("dataset", f"{self.row.name} reads {term}s", f"columns {wanted}")

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            more = {name for names in COLUMNS.values() for name in names} | {"preference"}
            names: Any = self._signature_columns
            self._signature_columns = [*names, *sorted(more - {*names})]  # type: ignore[assignment]

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Within the block the models attend as packed rows want it; recomputed layers too."""
        with ExitStack() as stack:
            for model in (self.model, self.ref_model) if self.args.packing else ():
                if model is not None:
                    inside = plain(self.accelerator.unwrap_model(model))
                    stack.enter_context(packed_attention(inside, "auto"))
            yield

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        with self._attention():
            loss: Tensor = super().training_step(*args, **options)
        return loss

    def prediction_step(self, *args: Any, **options: Any) -> Any:
        with self._attention():
            return super().prediction_step(*args, **options)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a batch, as transformers counts them, of the tokens that go through the model."""
        packed = inputs.get("packed")
        ids = inputs["input_ids"] if packed is None else packed.input_ids
        return int(super().floating_point_ops({"input_ids": ids}))

    def _run(self, model: Any, inputs: dict[str, Any], objective: Any) -> Any:
        """objective(hidden, target, cu_seqlens, head) of a batch, within the model's forward."""
        packed = inputs.get("packed")
        if packed is not None:

            def on_packed(states: Tensor, head: LMHead) -> Any:
                return objective(states, packed.target, packed.response_cu_seqlens, head)

            return model(packed=packed, objective=on_packed)
        mask, ids = inputs["completion_mask"], inputs["input_ids"]

        def on_padded(states: Tensor, head: LMHead) -> Any:
            return objective(*pack_responses(states, mask, ids), head)

        return model(**{k: inputs[k] for k in MODEL_INPUTS}, use_cache=False, objective=on_padded)

    def _logps(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """(2 B,) sums of log-probs under a policy that is not trained."""

        def sums(hidden: Tensor, target: Tensor, cu_seqlens: Tensor, head: LMHead) -> Any:
            options = {"cu_seqlens": cu_seqlens, "backend": self.args.backend}
            return head.logprob(hidden, target, **options)

        how: Any = self.args.gradient_checkpointing_kwargs
        still = disable_gradient_checkpointing(self.model, how)
        with torch.no_grad(), still, self.accelerator.autocast():
            found: Tensor = self._run(model, inputs, sums)
        return found.float()

    def _reference_logps(self, inputs: dict[str, Any]) -> Tensor:
        """(2 B,) under the reference: its own model, or ours without its trained adapter."""
        if self.ref_model is not None:
            return self._logps(self.ref_model, inputs)
        inside = self.accelerator.unwrap_model(self.model)
        if not is_peft_model(inside):  # before training it is the reference
            return self._logps(self.model, inputs)
        with use_adapter(inside, adapter_name="ref" if "ref" in inside.peft_config else None):
            return self._logps(self.model, inputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The dataset with the log-probs that the loss reads and it lacks, by file where kept."""
        if not isinstance(dataset, Dataset):
            refuse("dataset", "a stream can't be read ahead", "precompute_ref_log_probs=False")
        self._accept()
        for policy in POLICIES:
            if policy in self.row.uses and not {*columns(policy)} <= {*dataset.column_names}:
                dataset = with_columns(
                    dataset, policy, self._kept_logps(dataset, name, policy, batch_size)
                )
        return dataset

    def _kept_logps(self, dataset: Dataset, name: str, policy: str, batch_size: int) -> np.ndarray:
        """(rows, 2) under "ref" or "last", read from its file or computed and written to it."""
        started = self.state.global_step > 0
        live = policy == "last" or (self.ref_model is None and not is_peft_model(self.model))
        if started and live:
            refuse("dataset", f"training has begun, and changed {policy}", "its log-probs' columns")
        # both start from one policy, but for a second model, or an adapter that only one is with
        other = policy == "last" and (self.ref_model is not None or is_peft_model(self.model))
        if other and self.ref_model is not None and self.is_fsdp_enabled:
            refuse("dataset", "FSDP shards the policy later", f"columns {columns('last')}")
        weights = hash_module(self.model) if other else self._precompute_model_hash
        args = self.args
        options = (args.max_length, args.truncation_mode, args.bf16, args.fp16, other)
        folder = Path(self.args.logps_dir or f"{self.args.output_dir}/logps")
        path = file_of(folder, name, logps_key(dataset, str(weights), options))
        values = read_logps(path, len(dataset))
        there = torch.tensor([values is not None], device=self.accelerator.device)
        if not bool(self.accelerator.gather(there).all()):
            model_is = "last iterate" if other else "reference"
            values = self._computed(
                dataset, f"log-probs under the {model_is} ({name})", other, batch_size
            )
            if self.accelerator.is_local_main_process:
                write_logps(path, values)
            self.accelerator.wait_for_everyone()
        assert values is not None
        return values

    def _computed(self, dataset: Dataset, text: str, policy: bool, batch_size: int) -> np.ndarray:
        loader = DataLoader(
            dataset,
            batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        found, quiet = [], self.args.disable_tqdm or not self.accelerator.is_main_process
        with self._attention():
            for batch in tqdm(self.accelerator.prepare(loader), text, disable=quiet):
                logp = self._logps(self.model, batch) if policy else self._reference_logps(batch)
                pairs = logp.view(2, -1).T.contiguous()
                found.append(self.accelerator.gather_for_metrics(pairs).cpu())
        return torch.cat(found).double().numpy()

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if return_outputs:
            refuse("prediction_loss_only", "False: there are no logits to return", "True")
        row, pairs = self.row, inputs["pairs"]
        cached: dict[str, Any] = {
            f"{p}_logp": inputs.get(f"{p}_logp") for p in POLICIES if p in row.uses
        }
        if "ref" in row.uses and cached["ref_logp"] is None:
            cached["ref_logp"] = self._reference_logps(inputs)
        if "reward" in row.uses:
            cached["reward"] = inputs["reward"]
        labels = "pair_preference" if row.pairwise else "preference"
        if "preference" in {*row.uses, *row.optional} and labels in inputs:
            cached["preference"] = inputs[labels]
        if row.centred is not None and self.hyper.get(row.centred) is None:
            cached["group"] = inputs["group"]
        sides = torch.arange(2 * len(pairs)).chunk(2)
        scaler = self.accelerator.scaler  # there under fp16 alone

        def objective(hidden: Tensor, target: Tensor, cu_seqlens: Tensor, head: LMHead) -> Any:
            out = prox_loss(
                hidden,
                target=target,
                cu_seqlens=cu_seqlens,
                loss=row.name,
                chosen=sides[0] if row.pairwise else torch.cat(sides),
                rejected=sides[1] if row.pairwise else None,
                average_log_prob=self.args.average_log_prob,
                backend=self.args.backend,
                loss_scale=None if scaler is None else scaler.get_scale(),
                **cached,
                **self.hyper,
                **head.arguments(),
            )
            with torch.no_grad():
                options = {"cu_seqlens": cu_seqlens, "reduction": "sum"}
                found = head.logprob(hidden.detach(), target, outputs=STATISTICS, **options)
            counts = cu_seqlens.diff().to(out.logp)
            sums = [getattr(found, name).to(out.logp) for name in STATISTICS]
            return out.loss, out.logp, torch.stack([counts, *sums])

        loss, logp, statistics = self._run(model, inputs, objective)
        self._note(logp.detach(), statistics, cached, inputs["tokens"])
        return loss

    def _note(
        self, logp: Tensor, statistics: Tensor, cached: dict[str, Any], tokens: Tensor
    ) -> None:
        """TRL's metrics of a batch, with one exchange between ranks and one wait for the device.

        logp (2 B,); statistics (4, 2 B): tokens, and sums of entropy, mean logit and top-1 hits.
        """
        scale = self.hyper[self.row.scale] if self.row.scale else 1.0
        known = {name: x.to(logp) for name, x in cached.items() if name.endswith("_logp")}
        terms = Terms(known.get("ref_logp"), known.get("last_logp"), None, None, self.hyper)
        sums = batch_sums(scale * (logp - self.row.anchor(terms)), logp, statistics, tokens)
        total = self.accelerator.gather(sums[None]).sum(0).tolist()
        mode = "train" if self.model.training else "eval"
        metrics = self._metrics[mode]
        if mode == "train":
            if not self._total_train_tokens:  # a resumed run counts on from what it last logged
                logged = (row["num_tokens"] for row in self.state.log_history if "loss" in row)
                self._total_train_tokens = int(max(logged, default=0))
            self._total_train_tokens += int(total[-1]) // self._tp_size
        metrics["num_tokens"] = [self._total_train_tokens]
        for name, value in named_means(total).items():
            metrics[name].append(value)
