"""The head that training uses is the model's own, or the model is refused when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comal_fast.config.schema import ModelConfig
from comal_fast.errors import InputError
from comal_fast.model.head import check_head
from comal_fast.model.load import load_model
from comal_fast.model.packed import packed_attention
from comal_kernels.integrations.transformers import head as integration
from comal_kernels.packing import PromptResponse
from plain import packed_logps, plain_logps
from tiny import byte_tokenizer, tiny_model

FAMILIES = [
    ("llama", {}),
    ("gemma2", {"final_logit_softcapping": 2.0}),
    ("granite", {"logits_scaling": 8.0}),
    ("hyperclovax", {"logits_scaling": 8.0}),  # which multiplies by what Granite divides by
    ("cohere", {"logit_scale": 0.25}),
    ("falcon_h1", {"lm_head_multiplier": 0.3}),
    ("minicpm3", {}),
    ("gpt2", {}),
    ("phi", {}),  # its head has a bias
]


def saved(model: Any, folder: Path) -> ModelConfig:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return ModelConfig(name_or_path=str(folder), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=[f for f, _ in FAMILIES])
def test_known_heads_pass(family: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = tiny_model(family, **options).to(dtype)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias.data.normal_()
    check_head(model, family)


def test_a_probe_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    modules, parameters = list(model.modules()), dict(model.named_parameters())
    hooks = [len(m._forward_hooks) for m in modules]
    check_head(model, "llama")
    assert list(model.modules()) == modules
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert [len(m._forward_hooks) for m in modules] == hooks


def test_multiplied_where_granite_divides(tmp_path: Path) -> None:
    """HyperCLOVA X: log-prob −259 instead of −42 once, without a word."""
    model = load_model(saved(tiny_model("hyperclovax", logits_scaling=8.0), tmp_path))
    sequences = [PromptResponse([5, 6, 7], [9, 8, 20, 0]), PromptResponse([30], [40, 41])]
    with packed_attention(model, "sdpa"):
        ours = packed_logps(model, sequences)
    torch.testing.assert_close(ours.double(), plain_logps(model, sequences), rtol=1e-5, atol=1e-4)


def test_what_a_table_does_not_know_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = saved(tiny_model("hyperclovax", logits_scaling=8.0), tmp_path)
    monkeypatch.setattr(integration, "ODD", {})
    words = r"HyperCLOVAXForCausalLM is not reproduced: log-prob -\d\S* instead of -\d\S*;"
    with pytest.raises(InputError, match=words) as caught:
        load_model(options)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "scale": lambda z: 1.1 * z,
    "cap": lambda z: 5 * torch.tanh(z / 5),
    "bias of a word": lambda z: z + torch.nn.functional.one_hot(torch.tensor(7), z.shape[-1]),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_anything_on_the_logits_is_seen(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    plain = model.forward

    def forward(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = BETWEEN[what](output.logits)
        return output

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(InputError, match="LlamaForCausalLM is not reproduced"):
        check_head(model, "llama")


def test_a_norm_after_the_base_model_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a model's last norm belongs to its head."""
    model = tiny_model()
    norm = torch.nn.LayerNorm(model.config.hidden_size)
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (norm(inputs[0]),))
    with pytest.raises(InputError, match="LlamaForCausalLM is not reproduced"):
        check_head(model, "llama")


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    model = tiny_model()
    model.base_model.norm.weight.data[3] = torch.nan
    with pytest.raises(InputError, match="logits of LlamaForCausalLM are not finite"):
        load_model(saved(model, tmp_path))
