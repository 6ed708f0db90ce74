"""The decode loop samples the model's distribution, whoever else is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from comal_fast.config.generation import TransformersConfig
from comal_fast.errors import InputError
from comal_fast.generation.engine import Response
from comal_fast.generation.transformers import TransformersEngine
from comal_fast.model.logps import response_logps
from comal_kernels.packing import PromptResponse
from tiny import byte_tokenizer, tiny_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 9},
    "gemma2": {
        "sliding_window": 7,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 4.0,
        "query_pre_attn_scalar": 8,
    },
}
PROMPTS = [[5, 6, 7], [9] * 17, [30, 31], [40, 41] * 16, [8], [60, 61, 62] * 7, [3, 90]]


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sample(
    model: Any, prompts: Sequence[list[int]], count: int = 3, seed: str = "s", **options: Any
) -> dict[int, list[Response]]:
    part = options.pop("part", (0, 1))
    settings = {"max_new_tokens": 200, "batch_size": 7, "num_generations": 2} | options
    engine = TransformersEngine(TransformersConfig(**settings), model, byte_tokenizer())
    return {i: r for b in engine.sample(prompts, count, seed, part) for i, r in b.items()}


def restless(family: str, device: torch.device) -> Any:
    """A model that ends its responses at any length from 1 to 200 tokens."""
    model = tiny_model(family, **FAMILIES[family]).to(device)
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_leave_and_enter(family: str, device: torch.device) -> None:
    """The same samples as one prompt at a time, as all at once, and as ranks' shares."""
    model = restless(family, device)
    found = sample(model, PROMPTS)
    assert found == {i: sample(model, [p], batch_size=3)[0] for i, p in enumerate(PROMPTS)}
    assert found == sample(model, PROMPTS, batch_size=100)
    assert found == sample(model, PROMPTS, part=(0, 2)) | sample(model, PROMPTS, part=(1, 2))
    responses = [r for row in found.values() for r in row]
    lengths = [len(r.ids) for r in responses]
    assert min(lengths) < 40 and max(lengths) > 120, lengths
    assert all(r.finished == (r.ids[-1] == 0) and 0 not in r.ids[:-1] for r in responses)
    assert all(r.finished or len(r.ids) == 200 for r in responses)
    assert found != sample(model, PROMPTS, seed="another")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_likeliest_token_is_the_models(family: str, device: torch.device) -> None:
    """In the limit of temperature 0 every token is what the model itself puts first."""
    model = tiny_model(family, **FAMILIES[family]).to(device)
    found = sample(model, PROMPTS, 2, temperature=1e-4, max_new_tokens=24)
    for index, (one, other) in found.items():
        assert one == other
        ids = torch.tensor([PROMPTS[index] + one.ids], device=device)
        with torch.inference_mode():
            logits = model(ids).logits[0, len(PROMPTS[index]) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(one.ids, device=device)[:, None])[:, 0]
        assert (chosen >= logits.amax(1) - 1e-3).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_frequencies_are_the_models(family: str, device: torch.device) -> None:
    """χ² of the second token, after the most frequent first one, against the model's own."""
    model = tiny_model(family, **FAMILIES[family]).to(device)
    prompt, count, cold = [40, 41, 42] * 4, 4000, 0.2  # few words, so that each is seen often
    drawn = sample(model, [prompt], count, max_new_tokens=2, temperature=cold)
    first_two = [r.ids for r in drawn[0]]
    firsts = torch.bincount(torch.tensor([ids[0] for ids in first_two]), minlength=261)
    most = int(firsts.argmax())
    seconds = [ids[1] for ids in first_two if ids[0] == most and len(ids) == 2]
    for given, tokens in ([prompt, [ids[0] for ids in first_two]], [[*prompt, most], seconds]):
        with torch.inference_mode():
            logits = model(torch.tensor([given], device=device)).logits[0, -1]
        probabilities = (logits / cold).softmax(-1)
        expected = probabilities.cpu().double() * len(tokens)
        seen = torch.bincount(torch.tensor(tokens), minlength=261).double()
        rare = expected < 5
        cells = torch.cat([expected[~rare], expected[rare].sum()[None]])
        counts = torch.cat([seen[~rare], seen[rare].sum()[None]])
        statistic = float(((counts - cells).square() / cells.clamp(min=1e-9)).sum())
        freedom = len(cells) - 1
        assert freedom >= 3 and statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_what_is_sampled_has_the_log_probs_that_training_gives_it(device: torch.device) -> None:
    """The mean log-prob of samples is minus the entropy, so both see one distribution."""
    model = restless("llama", device)
    found = sample(model, [PROMPTS[0]], 400, max_new_tokens=3)[0]
    ids = [PromptResponse(PROMPTS[0], r.ids) for r in found]
    logps = torch.from_numpy(response_logps(model, ids, max_tokens=4096))
    tokens = sum(len(r.ids) for r in found)
    assert logps.isfinite().all()
    with torch.inference_mode():
        rows = [model(torch.tensor([PROMPTS[0] + r.ids], device=device)).logits[0] for r in found]
    entropy = sum(
        float(torch.distributions.Categorical(logits=row[2:-1].cpu()).entropy().sum())
        for row in rows
    )
    assert abs(float(logps.sum()) + entropy) / tokens < 0.2


def test_logits_that_are_no_numbers_are_one_line(device: torch.device) -> None:
    model = tiny_model().to(device)
    model.get_output_embeddings().weight.data[3] = torch.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        sample(model, PROMPTS)


def test_a_model_is_left_as_it_was(device: torch.device) -> None:
    """Between two batches too, and by whoever stops early."""
    model = tiny_model().to(device)
    before = model.config._attn_implementation
    engine = TransformersEngine(TransformersConfig(max_new_tokens=3), model, byte_tokenizer())
    for _ in engine.sample(PROMPTS, 2, "s"):
        assert model.config._attn_implementation == before
        assert not torch.is_inference_mode_enabled()
        model(torch.tensor([[5]], device=device)).logits.sum().backward()
        break
    assert model.config._attn_implementation == before


def test_one_prompt_more_than_fits(device: torch.device) -> None:
    """`batch_size` below the responses of one prompt: they are decoded together all the same."""
    model = tiny_model().to(device)
    one = sample(model, PROMPTS[:3], 4, batch_size=2, max_new_tokens=9)
    assert one == sample(model, PROMPTS[:3], 4, batch_size=64, max_new_tokens=9)
    assert sample(model, [], 4) == {}
