"""A tiny Llama over bytes whose responses are the strings of a game, with given probabilities.

Random weights, then a supervised fit to the start policy on every prompt; seconds on a CPU.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comal_fast.config import Config
from comal_fast.data.prompts import load_prompts
from comal_fast.data.tokenize import tokenize_prompts
from comal_fast.errors import InputError
from comal_fast.game.preference import Array, Game
from comal_fast.model.head import head_arguments
from comal_fast.model.packed import packed_attention
from comal_fast.store.artefacts import Folder, folder_key, make_key, write_folder
from comal_fast.system.terminal import progress
from comal_kernels import linear_logprob
from comal_kernels.integrations.transformers import predictor_states
from comal_kernels.packing import PromptResponse, pack

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
    "initializer_range": 0.1,
}
STEPS, BATCH, LEARNING_RATE = 400, 5, 2e-2  # of the fit; BATCH prompts a step
MAX_KL = 1e-3  # KL(start ‖ model) after it, on the worst prompt, in nats


def byte_tokenizer() -> Any:
    """A tokenizer of a token per byte and five special ones; any text comes back as it was."""
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


def fit(model: Any, sequences: list[PromptResponse], start: Array, seed: int) -> float:
    """Train until the model answers as `start` (n,) says; KL(start ‖ model) of the worst prompt.

    The KL, in nats, counts what the model gives to other strings. InputError above MAX_KL.
    """
    count, prompts = len(start), len(sequences) // len(start)
    wanted = torch.tensor(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    shuffle = random.Random(seed)
    order: list[int] = []
    with packed_attention(model.train(), "sdpa"), progress("fit", STEPS, "steps") as advance:
        for step in range(STEPS):
            for group in optimizer.param_groups:  # constant, then to zero over the second half
                group["lr"] = LEARNING_RATE * min(1.0, 2 - 2 * step / STEPS)
            if len(order) < min(BATCH, prompts):
                order = shuffle.sample(range(prompts), prompts)
            batch, order = order[:BATCH], order[BATCH:]
            chosen = [s for i in batch for s in sequences[i * count : (i + 1) * count]]
            loss = -(_logps(model, chosen).view(-1, count) * wanted).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance()
        with torch.inference_mode():
            cross = -(_logps(model, sequences).view(-1, count) * wanted).sum(1)
    model.eval()
    worst = (cross + torch.special.xlogy(wanted, wanted).sum()).max().item()
    if not worst <= MAX_KL:
        raise InputError(
            f"lm-game: after {STEPS} steps the model is {worst:.1e} nats from the start policy, "
            f"at most {MAX_KL:g} is wanted; give fewer prompts, or fewer or shorter responses"
        )
    return worst


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
        raise InputError(f"generation.max_new_tokens: {new}; a response of the game has {longest}")
    options = [SIZES, STEPS, BATCH, LEARNING_RATE, CHAT_TEMPLATE]
    key = make_key("lm-game", game.names, start.tolist(), prompts, config.seed, options)
    if target.exists() and folder_key(target) is None:
        raise InputError(f"model.name_or_path {target}: exists, and lm-game did not make it")
    if not Folder(target, "lm-game").holds(key):
        model = random_model(tokenizer, config.seed)
        fit(model, game_sequences(tokenizer, prompts, game.names), start, config.seed)
        with write_folder(target, key) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return target


def _logps(model: Any, sequences: list[PromptResponse]) -> Tensor:  # (S,) float64
    packed = pack(sequences, model.device)
    sums = linear_logprob(
        predictor_states(model, packed),
        target=packed.target,
        cu_seqlens=packed.response_cu_seqlens,
        **head_arguments(model),
    )
    return sums.double()
