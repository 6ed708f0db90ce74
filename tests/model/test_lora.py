"""Adapters: policies on one base, their gradients, their files; 4-bit bases."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comal_fast.config.schema import LoraConfig, ModelConfig
from comal_fast.model.adapters import add_adapter, freeze, load_adapter
from comal_fast.model.head import head_arguments
from comal_fast.model.load import load_model
from comal_fast.model.logps import joint_logps, response_logps
from comal_fast.model.packed import packed_attention
from comal_kernels import prox_loss
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack

LORA = LoraConfig(r=4, alpha=8)
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture
def config(tiny_folder: Path) -> ModelConfig:
    return ModelConfig(name_or_path=str(tiny_folder), device="cpu", lora=LORA)


def frozen(config: ModelConfig) -> Any:
    assert config.lora is not None
    return freeze(load_model(config), config.lora)


def trained(base: Any, config: ModelConfig, seed: int) -> Any:
    """A policy whose adapter says something: B is not 0."""
    policy = add_adapter(base, config, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.2, generator=generator)
    return policy


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def responses(count: int = 5) -> list[PromptResponse]:
    draw = np.random.default_rng(1)
    return [
        PromptResponse(draw.integers(5, 261, n).tolist(), draw.integers(0, 261, 3 + n).tolist())
        for n in range(1, count + 1)
    ]


def test_policies_share_the_base_and_never_mix(config: ModelConfig) -> None:
    base, plain = frozen(config), load_model(config.model_copy(update={"lora": None}))
    fresh = add_adapter(base, config, seed=0)
    assert torch.equal(logits(fresh), logits(plain))  # B = 0, bit for bit
    one, two = trained(base, config, 1), trained(base, config, 2)
    alone = {m: logits(trained(frozen(config), config, m)) for m in (1, 2)}
    assert not torch.allclose(alone[1], alone[2])
    for _ in range(2):  # in turns: each answers as it does alone, the base as if there were none
        assert torch.equal(logits(one), alone[1])
        assert torch.equal(logits(base), logits(plain))
        assert torch.equal(logits(two), alone[2])
    own = {id(p) for p in base.parameters()}
    for policy in (one, two):
        new = [(n, p) for n, p in policy.named_parameters() if id(p) not in own]
        assert new and all(".lora_" in name and p.requires_grad for name, p in new)
        assert sum(id(p) in own for p in policy.parameters()) == len(own)
    assert not any(p.requires_grad for p in base.parameters())
    assert not any("lora" in name for name, _ in base.named_modules())


def test_adapter_starts_from_its_seed(config: ModelConfig) -> None:
    base = frozen(config)
    before = torch.random.get_rng_state()
    a, b, c = (dict(add_adapter(base, config, s).named_parameters()) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    names = [n for n in a if ".lora_A." in n]
    assert all(torch.equal(a[n], b[n]) and not torch.equal(a[n], c[n]) for n in names)


def test_log_probs_together_equal_those_apart(config: ModelConfig) -> None:
    base = frozen(config)
    models = [base, trained(base, config, 1), trained(base, config, 2)]
    for budget in (1, 25, 10_000):
        together = joint_logps(models, responses(), max_tokens=budget)
        apart = [response_logps(m, responses(), max_tokens=budget) for m in models]
        np.testing.assert_allclose(together, apart, rtol=1e-6, atol=1e-5)
    other = load_model(config.model_copy(update={"lora": None}))
    with pytest.raises(ValueError, match="each has a head of its own"):
        joint_logps([base, other], responses(), max_tokens=25)


def prox(model: Any, sequences: list[PromptResponse]) -> Any:
    with packed_attention(model, "auto"):
        packed = pack(sequences, model.device)
        count = len(sequences)
        return prox_loss(
            predictor_states(model, packed),
            target=packed.target,
            cu_seqlens=packed.response_cu_seqlens,
            loss="dpo",
            beta=0.1,
            chosen=torch.arange(0, count, 2),
            rejected=torch.arange(1, count, 2),
            ref_logp=torch.linspace(-40, -20, count),
            **head_arguments(model),
        )


def plain_dpo(model: Any, sequences: list[PromptResponse]) -> torch.Tensor:
    """The same loss from the whole logits of one sequence after another."""
    logps = []
    for s in sequences:
        logp = model(torch.tensor([[*s.prompt_ids, *s.response_ids]])).logits[0].log_softmax(-1)
        rows = torch.arange(len(s.response_ids)) + len(s.prompt_ids) - 1
        logps.append(logp[rows, torch.tensor(s.response_ids)].sum())
    gain = torch.stack(logps) - torch.linspace(-40, -20, len(sequences))
    return -torch.nn.functional.logsigmoid(0.1 * (gain[0::2] - gain[1::2])).mean()


def test_gradients_equal_autograd_through_whole_logits(config: ModelConfig) -> None:
    """float32, against float64: relative error of each adapter matrix at most 1e-5."""
    policy = trained(frozen(config), config, 3)
    exact = copy.deepcopy(policy).double()
    prox(policy, responses(6)).loss.backward()
    plain_dpo(exact, responses(6)).backward()
    wide = dict(exact.named_parameters())
    adapted = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 2 * 7  # A and B of the seven linear layers of two blocks
    for name, parameter in adapted:
        assert parameter.grad is not None
        error = (parameter.grad - wide[name].grad).norm() / wide[name].grad.norm()
        assert error <= 1e-5, (name, error)


def test_frozen_head_has_no_gradient_made(config: ModelConfig) -> None:
    def made(model: Any) -> list[int]:
        """Words of dhidden, dweight, dbias that the loss made and holds for backward."""
        loss = prox(model, responses(4)).loss
        return [x.numel() for x in loss.grad_fn.saved_tensors]

    policy, full = (
        trained(frozen(config), config, 3),
        load_model(config.model_copy(update={"lora": None})),
    )
    hidden = 32 * sum(len(s.response_ids) for s in responses(4))
    assert made(policy) == [hidden, 0, 0]
    assert made(full) == [hidden, 261 * 32, 0]
    prox(policy, responses(4)).loss.backward()
    frozen_ones = [p for p in policy.parameters() if not p.requires_grad]
    assert frozen_ones and all(p.grad is None for p in frozen_ones)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_files_are_pefts_own(config: ModelConfig, tmp_path: Path, dtype: Any) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file

    config = config.model_copy(update={"dtype": dtype})
    base = frozen(config)
    policy = trained(base, config, 4)
    policy.save_pretrained(tmp_path)
    files = {f.name for f in tmp_path.iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert all(
        t.dtype == torch.float32 for t in load_file(tmp_path / "adapter_model.safetensors").values()
    )
    again = load_adapter(base, config, tmp_path)
    assert torch.equal(logits(again), logits(policy))
    peft = PeftModel.from_pretrained(
        load_model(config.model_copy(update={"lora": None})), str(tmp_path)
    )
    assert torch.equal(logits(peft), logits(policy))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"r": 8}, "its adapter has r=4, model.lora asks for 8"),
        ({"alpha": 9}, "its adapter has lora_alpha=8"),
        ({"use_rslora": True}, "its adapter has use_rslora=False"),
        ({"target_modules": ["q_proj"]}, "its adapter has target_modules="),
    ],
)
def test_another_adapter_is_refused(
    config: ModelConfig, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    base = frozen(config)
    add_adapter(base, config, 0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_adapter(
            base, config.model_copy(update={"lora": LORA.model_copy(update=options)}), tmp_path
        )


def test_rank_stabilised_scale_and_chosen_layers(config: ModelConfig) -> None:
    lora = LoraConfig(r=4, alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"])
    policy = add_adapter(frozen(config), config.model_copy(update={"lora": lora}), 0)
    layers = [m for m in policy.modules() if hasattr(m, "lora_A")]
    assert len(layers) == 2 * 2 and all(m.scaling["default"] == 4 for m in layers)  # 8 / √4


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "query"])
def test_layers_that_cannot_be_adapted(config: ModelConfig, target: str) -> None:
    lora = LoraConfig(target_modules=["q_proj", target])
    with pytest.raises(ValueError, match=f"target_modules: {target} is none.*down_proj, gate_proj"):
        freeze(load_model(config), lora)


# 4 bits


@pytest.fixture
def four_bits(config: ModelConfig) -> ModelConfig:
    pytest.importorskip("bitsandbytes")
    return config.model_copy(update={"quantization": "nf4"})


def test_four_bit_base_is_shared(four_bits: ModelConfig) -> None:
    base = frozen(four_bits)
    policy = trained(base, four_bits, 1)
    layer, own = base.model.layers[0].mlp.up_proj, policy.model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == 64 * 32 // 2
    assert own.weight is layer.weight and own.weight.quant_state is layer.weight.quant_state
    assert base.lm_head.weight.dtype == base.model.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(logits(add_adapter(base, four_bits, 0)), logits(base))
    whole = copy.deepcopy(base).dequantize(dtype=torch.float32)
    torch.testing.assert_close(logits(base), logits(whole), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        logits(base), logits(load_model(four_bits.model_copy(update={"quantization": "none"})))
    )


def test_four_bit_gradients_after_inference(four_bits: ModelConfig) -> None:
    """Passes in eval mode must not leave the weights in a layout that stops gradients."""
    policy = trained(frozen(four_bits), four_bits, 3)
    exact = copy.deepcopy(policy)
    response_logps(policy, responses(6), max_tokens=100)
    policy.train()
    prox(policy, responses(6)).loss.backward()
    plain_dpo(exact.train(), responses(6)).backward()
    for (name, ours), (_, plain) in zip(
        policy.named_parameters(), exact.named_parameters(), strict=True
    ):
        if ours.requires_grad:
            assert plain.grad.norm() > 0
            assert (ours.grad - plain.grad).norm() <= 1e-4 * plain.grad.norm(), name
