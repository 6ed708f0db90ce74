"""A tiny Llama over bytes whose responses are the strings of a game, with given probabilities.

Random weights, then a supervised fit to the start policy on every prompt; seconds on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comal_fast.artefacts import folder_key, make_key, write_folder
from comal_fast.config import Config
from comal_fast.data.prompts import load_prompts
from comal_fast.data.tokenize import tokenize_prompts
from comal_fast.game.preference import Array, Game
from comal_fast.model.packed import (
    Packed,
    PromptResponse,
    head_arguments,
    pack,
    packed_attention,
    predictor_states,
)
from comal_fast.terminal import progress
from comal_kernels import linear_logprob

SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MAX_STEPS, TOLERANCE = 1000, 1e-5  # of the fit: mean KL(start ‖ model) over the prompts, in nats
LEARNING_RATE = 5e-3


def byte_tokenizer() -> Any:
    """A token per byte and five special ones; any text comes back as it was."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[4],
        additional_special_tokens=SPECIAL[1:4],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def random_model(tokenizer: Any, seed: int) -> Any:
    """A Llama of SIZES with random weights, in float32 on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def game_sequences(
    tokenizer: Any, prompts: Sequence[Sequence[int]], names: Sequence[str]
) -> list[PromptResponse]:
    """Every string of the game as a finished response to every prompt, prompt by prompt."""
    ends = [
        [*tokenizer(name, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for name in names
    ]
    return [PromptResponse(prompt, end) for prompt in prompts for end in ends]


def fit(model: Any, sequences: list[PromptResponse], start: Array) -> float:
    """Train until the model answers as `start` (n,) says; KL(start ‖ model), mean over prompts.

    The KL counts what the model gives to other strings. ValueError where MAX_STEPS do not suffice.
    """
    wanted = torch.tensor(start)
    entropy = -torch.special.xlogy(wanted, wanted).sum().item()
    packed = pack(sequences, model.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    excess = math.inf
    with packed_attention(model.train(), "sdpa"), progress("fit", MAX_STEPS, "steps") as advance:
        for step in range(MAX_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / MAX_STEPS)
            logp = _logps(model, packed).double().view(-1, len(start))
            loss = -(logp * wanted).sum(1).mean()
            excess = loss.item() - entropy
            if excess <= TOLERANCE:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance()
    model.eval()
    if not excess <= TOLERANCE:
        raise ValueError(
            f"lm-game: after {MAX_STEPS} steps the model is {excess:.1e} nats from the start "
            f"policy, {TOLERANCE:g} is wanted; give fewer prompts or shorter responses"
        )
    return excess


def make(config: Config, game: Game, start: Array) -> Path:
    """The folder `model.name_or_path` with a model whose policy is `start` on all of the prompts.

    What is there already, made from the same things, is left as it is.
    """
    target = Path(config.model.name_or_path).expanduser()
    tokenizer = byte_tokenizer()
    loaded = load_prompts(config.data)
    new = config.generation.max_new_tokens
    prompts = [p.ids for p in tokenize_prompts(loaded, tokenizer, config.data, new)[0]]
    longest = max(len(s.response_ids) for s in game_sequences(tokenizer, [[0]], game.names))
    if longest > new:
        raise ValueError(f"generation.max_new_tokens: {new}; a response of the game has {longest}")
    options = [SIZES, MAX_STEPS, TOLERANCE, LEARNING_RATE, CHAT_TEMPLATE]
    key = make_key("lm-game", game.names, start.tolist(), prompts, config.seed, options)
    if target.exists() and folder_key(target) is None:
        raise ValueError(f"model.name_or_path {target}: exists, and lm-game did not make it")
    if folder_key(target) != key:
        model = random_model(tokenizer, config.seed)
        fit(model, game_sequences(tokenizer, prompts, game.names), start)
        with write_folder(target, key) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return target


def _logps(model: Any, packed: Packed) -> Tensor:  # (S,)
    return linear_logprob(
        predictor_states(model, packed),
        target=packed.target,
        cu_seqlens=packed.response_cu_seqlens,
        **head_arguments(model),
    )
