"""transformers' models through the loss library alone: their head, log-probs in place of logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from comal_kernels.integrations.missing import need
from comal_kernels.integrations.transformers import LMHead, with_fused_logprobs
from tiny import tiny_model

FAMILIES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("gemma2", {"final_logit_softcapping": 2.0}),
    ("granite", {"logits_scaling": 8.0}),
    ("cohere", {"logit_scale": 0.25}),
    ("phi", {}),
    ("gpt2", {}),
]
OUTPUTS = ("logp", "entropy", "mean_logit")


def batch(vocab: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, vocab, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, 3:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_logits(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs = {n: x for n, x in given.items() if n != "labels"}
    z = model(**inputs).logits[:, :-1].float()
    labels = given["labels"][:, 1:]
    logp = z.log_softmax(-1)
    found = {
        "logp": logp.gather(-1, labels.clamp(min=0)[..., None])[..., 0],
        "entropy": -(logp.exp() * logp).sum(-1),
        "mean_logit": z.mean(-1),
    }
    return {name: x.masked_fill(labels == -100, 0) for name, x in found.items()}


@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=str)
def test_log_probs_in_place_of_logits(family: str, options: dict[str, Any]) -> None:
    """Values, and gradients of every parameter."""
    model = tiny_model(family, **options)
    given, fused = batch(model.config.vocab_size), with_fused_logprobs(model, OUTPUTS)
    ours, plain = fused(**given), by_logits(model, given)
    for i, found in enumerate((vars(ours), plain)):
        loss = sum((j + 1) * found[name].square().sum() for j, name in enumerate(OUTPUTS))
        model.zero_grad()
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        if i == 0:
            first = grads
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(ours, name), plain[name], rtol=1e-4, atol=1e-5)
    assert first.keys() == grads.keys()
    largest = max(float(g.abs().max()) for g in grads.values())
    for name, grad in grads.items():
        torch.testing.assert_close(first[name], grad, rtol=1e-3, atol=1e-5 * largest)


def test_an_adapter_of_peft() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model()
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    given = batch(model.config.vocab_size)
    fused = with_fused_logprobs(wrapped)
    found, plain = fused(**given).logp, by_logits(wrapped, given)["logp"]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    grads = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    assert grads and all("lora" in name for name in grads)


def test_reduced_and_tempered() -> None:
    model = tiny_model()
    given = batch(model.config.vocab_size)
    found = with_fused_logprobs(model, temperature=0.7, reduction="sum")(**given).logp
    z = model(given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1] / 0.7
    labels = given["labels"][:, 1:]
    picked = z.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(found, picked.masked_fill(labels == -100, 0).sum(1))


def test_a_head_that_is_not_reproduced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    plain = model.forward

    def forward(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = 1.1 * output.logits
        return output

    monkeypatch.setattr(model, "forward", forward)
    for make in (LMHead.from_model, with_fused_logprobs):
        with pytest.raises(ValueError, match=r"model: the head of LlamaForCausalLM is not repro"):
            make(model)
    with pytest.raises(ValueError, match="model: LlamaModel has no head over words"):
        LMHead.from_model(model.base_model)


@pytest.mark.parametrize("package", ["transformers", "trl"])
def test_the_missing_package_is_named(package: str) -> None:
    script = f"""
import sys
sys.modules["{package}"] = None
try:
    import comal_kernels.integrations.{package}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"{package} needs the package {package}; pip install {package}" in done.stdout, done


def test_a_folder_of_its_name_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "not_installed").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"\.x needs the package not_installed"):
        need("not_installed", "x")
