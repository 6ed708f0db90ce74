"""Recomputed layers, budgets and host memory: the same gradients, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from comal_fast.config import Config, load_config
from comal_fast.config.algorithm import IpoConfig
from comal_fast.config.schema import ModelConfig, TrainingConfig
from comal_fast.model.activations import (
    HostShelf,
    activations,
    layers_of,
    recompute_layers,
    spread,
)
from comal_fast.model.packed import packed_attention
from comal_fast.plan.check import recomputed_layers
from comal_fast.plan.search import budgeted_layers, layers_to_recompute
from comal_fast.plan.shapes import shape_of
from comal_fast.training.items import make_items
from comal_fast.training.trainer import Trainer
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack
from tiny import tiny_model

SEQUENCES = [PromptResponse([7] * n, [9, 8, *range(20, 20 + n)]) for n in (3, 11, 20, 6)]


def options(**training: Any) -> Config:
    return Config(model=ModelConfig(name_or_path=""), training=TrainingConfig(**training))


def gradients(model: Any, **training: Any) -> list[torch.Tensor]:
    """Of a packed pass, as the trainer makes one."""
    model.train()
    model.zero_grad()
    packed = pack(SEQUENCES, model.device)
    config = options(**training)
    count = recomputed_layers(model, config, packed.tokens)
    with (
        packed_attention(model, "auto"),
        activations(model, count, config.training.offload_activations),
    ):
        predictor_states(model, packed).square().sum().backward()
    return [p.grad.clone() for p in model.base_model.parameters() if p.grad is not None]


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize(
    "training",
    [
        {"gradient_checkpointing": True},
        {"activation_memory": "0.4MiB"},
        {"gradient_checkpointing": True, "offload_activations": True},
        {"activation_memory": "0.4MiB", "offload_activations": True},
    ],
    ids=str,
)
def test_gradients_are_the_same_bit_for_bit(family: str, training: dict[str, Any]) -> None:
    model = tiny_model(family, num_hidden_layers=5)
    plain = gradients(model)
    assert len(plain) == len(list(model.base_model.parameters()))
    if "activation_memory" in training:
        tokens = pack(SEQUENCES, model.device).tokens
        assert 0 < recomputed_layers(model, options(**training), tokens) < 5
    for ours, expected in zip(gradients(model, **training), plain, strict=True):
        assert torch.equal(ours, expected)


def test_a_budget_recomputes_some_layers_and_no_more() -> None:
    model = tiny_model(num_hidden_layers=8)
    shape, tokens = shape_of(model.config), 1024
    counts = [
        recomputed_layers(model, options(activation_memory=f"{mib}MiB"), tokens)
        for mib in (1, 8, 12, 100)
    ]
    assert counts[0] == 8 and counts[-1] == 0 and sorted(counts, reverse=True) == counts
    assert 0 < counts[2] < 8
    assert counts[2] == budgeted_layers(options(activation_memory="12MiB"), shape, tokens, False)


@given(
    st.floats(0, 1e6), st.integers(1, 64), st.floats(1, 100), st.floats(0, 1), st.integers(1, 99)
)
def test_the_least_number_of_layers(
    budget: float, layers: int, kept: float, share: float, tokens: int
) -> None:
    inputs = kept * share * 0.99

    def held(count: int) -> float:
        return ((layers - count) * kept + count * inputs) * tokens

    count = layers_to_recompute(budget, tokens, layers, kept, inputs)
    assert 0 <= count <= layers
    assert held(count) <= budget * (1 + 1e-9) or count == layers
    assert count == 0 or held(count - 1) > budget * (1 - 1e-9)


@given(st.integers(1, 100), st.data())
def test_recomputed_layers_are_evenly_spread(layers: int, data: Any) -> None:
    count = data.draw(st.integers(0, layers))
    chosen = spread(count, layers)
    assert len(set(chosen)) == count and all(0 <= i < layers for i in chosen)
    if count > 1:
        gaps = [b - a for a, b in zip(chosen, [*chosen[1:], layers], strict=True)]
        assert max(gaps) - min(gaps) <= 1


def test_what_is_kept_shrinks_and_layers_are_left_as_they_were() -> None:
    model = tiny_model(num_hidden_layers=4).train()
    packed = pack(SEQUENCES, model.device)

    def kept(count: int) -> int:
        sizes: dict[int, int] = {}

        def note(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        undo = recompute_layers(model, count)
        with (
            packed_attention(model, "auto"),
            torch.autograd.graph.saved_tensors_hooks(note, lambda x: x),
        ):
            predictor_states(model, packed)
        undo()
        return sum(sizes.values())

    sizes = [kept(count) for count in range(5)]
    assert sizes == sorted(sizes, reverse=True) and sizes[4] < sizes[0] / 2
    assert not any(layer.gradient_checkpointing for layer in layers_of(model))


def test_inputs_lie_in_host_memory_until_they_are_fetched() -> None:
    model = tiny_model(num_hidden_layers=4).train()
    packed, shelf = pack(SEQUENCES, model.device), HostShelf(torch.device("cpu"))
    undo = recompute_layers(model, 3, shelf.checkpoint)
    with packed_attention(model, "auto"):
        total = predictor_states(model, packed).sum()
        shelf_ = [kept for kept in shelf.shelf if kept.host.numel()]  # torch 2.11 keeps empty ones
        assert [kept.host.shape for kept in shelf_] == [(1, packed.tokens, 32)] * 3
        assert [kept.here is None for kept in shelf_] == [True, True, False]
        total.backward()
    undo()
    assert shelf.shelf == []


def test_the_shelf_s_buffers_serve_every_pass() -> None:
    """In the size of the largest pass, and the gradients stay those of a shelf of their own."""
    model = tiny_model(num_hidden_layers=4).train()
    shelf = HostShelf(torch.device("cpu"))

    def backward(sequences: list[PromptResponse], on: HostShelf) -> list[torch.Tensor]:
        model.zero_grad()
        undo = recompute_layers(model, 3, on.checkpoint)
        with packed_attention(model, "auto"):
            predictor_states(model, pack(sequences, model.device)).square().sum().backward()
        undo()
        return [p.grad.clone() for p in model.base_model.parameters() if p.grad is not None]

    backward(SEQUENCES, shelf)
    largest = pack(SEQUENCES, model.device).tokens * 32 * 4
    used = [buffer.data_ptr() for buffer in shelf.buffers]
    assert [buffer.numel() for buffer in shelf.buffers if buffer.numel()] == [largest] * 3
    for sequences in (SEQUENCES[:2], SEQUENCES[2:], SEQUENCES):
        alone = backward(sequences, HostShelf(torch.device("cpu")))
        for ours, expected in zip(backward(sequences, shelf), alone, strict=True):
            assert torch.equal(ours, expected)
    assert [buffer.data_ptr() for buffer in shelf.buffers] == used


def trained(**training: Any) -> dict[str, torch.Tensor]:
    """The weights after an iteration's steps on pairs of uneven length."""
    torch.manual_seed(0)
    model, n = tiny_model(num_hidden_layers=4), 4
    sequences = {
        i: PromptResponse([7 + i % n] * (3 + i % n), [9, *range(20, 25 + 3 * i)])
        for i in range(2 * n)
    }
    config = Config(
        model=ModelConfig(name_or_path=""),
        algorithm=IpoConfig(eta=0.05),
        training=TrainingConfig(
            learning_rate=1e-3,
            num_train_epochs=1,
            train_batch_size=2,
            max_tokens_per_microbatch=60,
            **training,
        ),
    )
    items = make_items(
        config,
        chosen=list(range(n)),
        rejected=list(range(n, 2 * n)),
        preference=[1.0] * n,
        count=[1] * n,
        prompt=list(range(n)) * 2,
        win_rate=[0.5] * (2 * n),
        ref_logp=[-40.0] * (2 * n),
        last_logp=[-40.0] * (2 * n),
    )
    with Trainer(config, model, items, sequences, iteration=1) as trainer:
        while trainer.step < trainer.steps:
            trainer.optimizer_step()
    return model.state_dict()


def test_the_trainer_makes_the_same_weights_under_a_budget() -> None:
    plain, start = trained(), tiny_model(num_hidden_layers=4).state_dict()
    assert any(not torch.equal(plain[name], start[name]) for name in start)
    for budget in ("0.01MiB", "0.2MiB"):
        tried = trained(activation_memory=budget, offload_activations=True)
        assert all(torch.equal(tried[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["training.activation_memory=much"], r"activation_memory: 'much' is no size.*8GiB"),
        (["training.activation_memory=0GiB"], r"activation_memory: '0GiB' is no size"),
        (
            ["training.activation_memory=1GiB", "training.gradient_checkpointing=true"],
            r"gradient_checkpointing recomputes every layer",
        ),
        (["training.offload_activations=true"], r"offload_activations: only recomputed layers"),
    ],
)
def test_bad_options(tiny_run: Path, override: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load_config(tiny_run, override)
    assert "\n" not in str(caught.value)


def test_models_without_such_layers() -> None:
    model = torch.nn.Linear(3, 3)
    recompute_layers(model, 0)()
    with pytest.raises(ValueError, match="gradient_checkpointing: Linear has no layers"):
        recomputed_layers(model, options(gradient_checkpointing=True), 100)


def test_auto_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="auto needs a GPU; give a size"):
        recomputed_layers(tiny_model(), options(activation_memory="auto"), 100)
