"""Tokenizers with the chat templates of known models; a token a byte, and one a special token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
LLAMA = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
CHATML = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
SPECIAL = {  # the first begins a text, where the template says so, the second ends a turn
    "llama_3": LLAMA,
    "llama_3_2": LLAMA,
    "qwen2_5": CHATML,
    "qwen3": [*CHATML, "<think>", "</think>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]"],
    "gemma_2": ["<bos>", "<end_of_turn>", "<start_of_turn>"],
    "smollm2": CHATML,
}


def chat_tokenizer(name: str, *merges: tuple[str, str]) -> Any:
    """With the template of that file. `merges`: pairs of byte symbols that are one token.

    Asked to, it would put a beginning of text before every text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special, alphabet = SPECIAL[name], sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*special, *alphabet, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate(symbols)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=special[1],
        pad_token=special[0],
        additional_special_tokens=special[2:],
    )
    fast.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    return fast


def ids_by_hand(name: str, text: str) -> list[int]:
    """The ids of a text without the tokenizer: special tokens by their number, bytes by theirs."""
    from tokenizers import pre_tokenizers

    special, alphabet = SPECIAL[name], sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's byte alphabet
    others = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, special))})", text):
        if part in special:
            ids.append(special.index(part))
        else:
            ids += [len(special) + alphabet.index(symbol[b]) for b in part.encode()]
    return ids
