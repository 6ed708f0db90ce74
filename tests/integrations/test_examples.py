"""The examples that plug the library into a loop of one's own, and into transformers' Trainer."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from forked import python
from modules import load
from tiny import byte_tokenizer, tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of each sequence's counted tokens, by full logits."""
    z = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    picked = z.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (picked * batch["mask"][:, 1:]).sum(1)


def dpo(model: Any, batch: dict[str, Tensor], reference: Tensor) -> Tensor:
    w, r = (logps(model, batch) - reference).chunk(2)
    return -torch.nn.functional.logsigmoid(0.1 * (w - r)).mean()


def test_plain_torch_is_dpo_by_full_logits() -> None:
    module, model = load(EXAMPLES / "plain_torch.py"), tiny_model()
    batch, other = module.collate(byte_tokenizer(), module.PAIRS), copy.deepcopy(model)
    losses = module.train(model, batch, 5, 1e-3)
    with torch.no_grad():
        reference = logps(other, batch)
    optimizer, plain = torch.optim.AdamW(other.parameters(), lr=1e-3), []
    for _ in range(5):
        loss = dpo(other, batch, reference)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        plain.append(loss.item())
    assert losses == pytest.approx(plain, rel=1e-4) and losses[-1] < losses[0]


def test_plain_torch_runs(tiny_folder: Path) -> None:
    command = [python(), str(EXAMPLES / "plain_torch.py"), str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("loss") == 10, done.stderr


def rows() -> list[dict[str, Any]]:
    """Eight pairs, of other lengths."""
    torch.manual_seed(3)
    found = []
    for i in range(8):
        prompt = torch.randint(5, 261, (3 + i % 3,)).tolist()
        row = {}
        for side in ("chosen", "rejected"):
            answer = torch.randint(5, 261, (2 + (i * 3 + len(side)) % 5,)).tolist()
            mask = [0] * len(prompt) + [1] * len(answer)
            row[side] = {"input_ids": prompt + answer, "mask": mask, "ref_logp": 0.0}
        found.append(row)
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_follows_full_logits(tmp_path: Path, accumulation: int) -> None:
    """Losses and weights, over two epochs; accumulated passes are averaged."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    module, model, data = load(EXAMPLES / "hf_trainer.py"), tiny_model(), rows()
    with torch.no_grad():
        for row in data:
            for side, ref in zip(row.values(), logps(model, module.collate([row])), strict=True):
                side["ref_logp"] = float(ref)
    other = copy.deepcopy(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )

    class Plain(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
            self.model_accepts_loss_kwargs = False
            return dpo(model, inputs, inputs["ref_logp"])

    common: dict[str, Any] = {
        "args": arguments, "train_dataset": data, "data_collator": module.collate,
    }  # fmt: skip
    ours = module.ProxTrainer(model=model, hyper={"beta": 0.1}, **common)
    theirs = Plain(model=other, **common)
    ours.train()
    theirs.model_accepts_loss_kwargs = False
    theirs.train()
    losses = [[x["loss"] for x in t.state.log_history if "loss" in x] for t in (ours, theirs)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-4)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_prox_loss_by_trl(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    rows = [{"prompt": f"{i}?", "chosen": " yes", "rejected": " no, no"} for i in range(4)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "logging_steps": 1}
    trainer = load(EXAMPLES / "trl_prox.py").main(str(tiny_folder), str(pairs), str(out), **options)
    assert (out / "model.safetensors").exists()
    first = next(row for row in trainer.state.log_history if "loss" in row)
    assert first["loss"] == pytest.approx(100.0)  # (1 / 2η)²: the policy is where it starts from


def test_verls_and_openrlhfs_functions() -> None:
    module = load(EXAMPLES / "openrlhf_verl.py")
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 7, 8), torch.randn(30, 8)
    ids, temperature = torch.randint(30, (2, 7)), 0.7
    logs = (hidden @ weight.T / temperature).log_softmax(-1)
    logp, entropy = logs.gather(-1, ids[..., None])[..., 0], -(logs.exp() * logs).sum(-1)
    from comal_kernels.integrations.transformers import LMHead

    for found in (
        module.FusedLinearForPPO(3)(hidden, weight, ids, temperature),
        module.linear_cross_entropy(hidden, weight, ids, temperature),
    ):
        torch.testing.assert_close(found[0], logp)
        torch.testing.assert_close(found[1], entropy)
    mean, _ = module.linear_cross_entropy(hidden, weight, ids, temperature, "mean")
    torch.testing.assert_close(mean, logp.mean())
    openrlhf = module.log_probs_from_states(LMHead(weight))
    torch.testing.assert_close(openrlhf(hidden, ids, temperature=temperature), logp)


def test_a_loop_of_accelerates(tiny_folder: Path) -> None:
    losses = load(EXAMPLES / "accelerate_loop.py").main(str(tiny_folder), steps=8, cpu=True)
    assert losses[0] == pytest.approx(0.693147, abs=1e-5) and losses[-1] < losses[0]
