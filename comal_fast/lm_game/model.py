"""A small Llama over bytes whose responses are the strings of a game, with given probabilities.

Random weights, then a supervised fit to the start policy on every prompt; on a CPU seconds for one
game, minutes for hundreds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comal_fast.config import Config
from comal_fast.data.prompts import load_prompts
from comal_fast.data.tokenize import tokenize_prompts
from comal_fast.errors import InputError
from comal_fast.game.preference import Array
from comal_fast.game.prompted import PromptGame
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
HIDDEN, LAYERS = 64, 2


@dataclass(frozen=True)
class Fit:
    """How long and how fast the model is fitted, and how near it must come."""

    steps: int
    batch: int
    """Prompts a step."""
    learning_rate: float
    max_kl: float
    """KL(start ‖ model) after it, on the worst prompt, in nats."""


ONE_GAME = Fit(400, 5, 2e-2, 1e-3)


def many_games(prompts: int) -> Fit:
    """What fits a game a prompt: each prompt comes up about 240 times."""
    return Fit(max(400, 6 * prompts), 40, 3e-3, 2e-2)


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


def sizes(hidden: int, layers: int) -> dict[str, Any]:
    """The shape of a Llama: heads 16 wide, or 32 from a width of 128 on, and half as many pairs."""
    head = 16 if hidden < 128 else 32
    return {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // head,
        "num_key_value_heads": hidden // head // 2,
        "head_dim": head,
        "initializer_range": 0.1 * (64 / hidden) ** 0.5,
    }


def random_model(tokenizer: Any, shape: dict[str, Any], seed: int) -> Any:
    """A Llama of that shape with random weights, in float32 on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)


def game_sequences(
    tokenizer: Any, prompts: Sequence[Sequence[int]], names: Sequence[Sequence[str]]
) -> list[PromptResponse]:
    """Every string of a prompt's game as a finished response to it, prompt by prompt."""
    ends = {
        name: [*tokenizer(name, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for some in names
        for name in some
    }
    return [
        PromptResponse(prompt, ends[name])
        for prompt, some in zip(prompts, names, strict=True)
        for name in some
    ]


def fit(
    model: Any, sequences: list[PromptResponse], starts: Sequence[Array], how: Fit, seed: int
) -> float:
    """Train until the model answers as `starts` say; KL(start ‖ model) of the worst prompt.

    starts: of each prompt (n,), the prompt's n sequences one after the other. The KL, in nats,
    counts what the model gives to other strings. InputError above `how.max_kl`.
    """
    ends = np.cumsum([len(start) for start in starts])
    rows = [range(end - len(start), end) for end, start in zip(ends, starts, strict=True)]
    wanted = torch.tensor(np.concatenate(starts))
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.learning_rate, weight_decay=0.0)
    shuffle = random.Random(seed)
    order: list[int] = []
    with packed_attention(model.train(), "sdpa"), progress("fit", how.steps, "steps") as advance:
        for step in range(how.steps):
            for group in optimizer.param_groups:  # constant, then to zero over the second half
                group["lr"] = how.learning_rate * min(1.0, 2 - 2 * step / how.steps)
            if len(order) < min(how.batch, len(rows)):
                order = shuffle.sample(range(len(rows)), len(rows))
            batch, order = order[: how.batch], order[how.batch :]
            chosen = [i for prompt in batch for i in rows[prompt]]
            logps = _logps(model, [sequences[i] for i in chosen])
            loss = -(logps * wanted[chosen]).sum() / len(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance()
        with torch.inference_mode():
            logps = torch.cat([_logps(model, [sequences[i] for i in some]) for some in rows])
    model.eval()
    terms = torch.special.xlogy(wanted, wanted) - wanted * logps
    worst = max(terms[list(some)].sum().item() for some in rows)
    if not worst <= how.max_kl:
        raise InputError(
            f"lm-game: after {how.steps} steps the model is {worst:.1e} nats from the start "
            f"policy, at most {how.max_kl:g} is wanted; give fewer prompts, fewer or shorter "
            "responses, or a larger model (--hidden, --layers)"
        )
    return worst


def make(
    config: Config,
    start_of: Callable[[str], PromptGame],
    one: bool,
    hidden: int = HIDDEN,
    layers: int = LAYERS,
) -> Path:
    """The folder `model.name_or_path` with a model whose policy is each prompt's start.

    `one`: whether all prompts have the same game. What is there already, made from the same
    things, is left as it is.
    """
    target = Path(config.model.name_or_path).expanduser()
    tokenizer = byte_tokenizer()
    loaded = load_prompts(config.data)
    new = config.generation.max_new_tokens
    prompts = tokenize_prompts(loaded, tokenizer, config.data, new)[0]
    played = [start_of(p.text) for p in prompts]
    names, starts = [p.game.names for p in played], [p.start for p in played]
    sequences = game_sequences(tokenizer, [p.ids for p in prompts], names)
    longest = max(len(s.response_ids) for s in sequences)
    if longest > new:
        raise InputError(f"generation.max_new_tokens: {new}; a response of the game has {longest}")
    shape, how = sizes(hidden, layers), ONE_GAME if one else many_games(len(prompts))
    given = [[p.ids, n, s.tolist()] for p, n, s in zip(prompts, names, starts, strict=True)]
    key = make_key("lm-game", given, config.seed, [shape, asdict(how), CHAT_TEMPLATE])
    if target.exists() and folder_key(target) is None:
        raise InputError(f"model.name_or_path {target}: exists, and lm-game did not make it")
    if not Folder(target, "lm-game").holds(key):
        model = random_model(tokenizer, shape, config.seed)
        fit(model, sequences, starts, how, config.seed)
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
