"""TRL's loop on the same token ids and reference log-probs: its DPOTrainer, and our plug-in."""

from __future__ import annotations

import tempfile
from typing import Any
from unittest import mock

from bench.trainers.base import LEARNING_RATE, MAX_GRAD_NORM, Task, Turn

ENDLESS = 10_000  # optimiser steps; the process ends first


def train(task: Task, turn: Turn) -> None:
    """Steps of TRL's DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    _train(task, turn, DPOTrainer, DPOConfig)


def train_prox(task: Task, turn: Turn) -> None:
    """Steps of the same loop with comal_kernels' loss: packed rows, shared prompts."""
    from comal_kernels.integrations.trl import ProxConfig, ProxTrainer

    _train(task, turn, ProxTrainer, ProxConfig)


def _train(task: Task, turn: Turn, trainer_class: Any, config_class: Any) -> None:
    """Take steps by `trainer.train()`, timed from the first forward pass to the logged loss."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    class Ready(trainer_class):
        """The dataset holds token ids and reference log-probs: nothing is left to prepare."""

        def _prepare_dataset(self, dataset: Any, *rest: Any, **options: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            return dataset

    class Turns(TrainerCallback):
        def on_step_begin(self, *event: Any, **rest: Any) -> None:
            turn.wait()

        def on_log(self, *event: Any, **rest: Any) -> None:
            logs: dict[str, float] = rest["logs"]
            if "grad_norm" in logs:
                turn.done(logs["loss"], logs["grad_norm"])

    pairs, cuda = task.pairs, task.model.device.type == "cuda"
    columns = {
        "prompt_ids": pairs.prompts,
        "chosen_ids": pairs.chosen,
        "rejected_ids": pairs.rejected,
        "ref_chosen_logps": pairs.ref_chosen,
        "ref_rejected_logps": pairs.ref_rejected,
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<pad>",
    )
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            beta=pairs.beta,
            per_device_train_batch_size=task.mode.micro_pairs,
            gradient_accumulation_steps=-(-len(pairs) // task.mode.micro_pairs),
            max_steps=ENDLESS,
            max_length=None,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            max_grad_norm=MAX_GRAD_NORM,
            weight_decay=0.0,
            optim="adamw_torch_fused",
            bf16=False,  # the weights' dtype decides, as in the other trainers
            fp16=False,
            use_cpu=not cuda,
            gradient_checkpointing=task.mode.recompute == "all",
            use_liger_kernel=task.mode.liger,
            precompute_ref_log_probs=True,
            remove_unused_columns=False,
            dataloader_pin_memory=cuda,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        # it hashes the weights to name the cache file of the log-probs that are given here
        with mock.patch("trl.trainer.dpo_trainer.hash_module", return_value=""):
            trainer = Ready(
                task.model,
                args=config,
                train_dataset=Dataset.from_dict(columns),
                processing_class=tokenizer,
                callbacks=[Turns()],
            )
        trainer.train()
