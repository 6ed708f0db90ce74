"""A policy as files, for a process that loads it itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from comal_fast.data.template import end_of_turn
from comal_fast.model.load import load_pretrained


@dataclass(frozen=True)
class Stored:
    """A transformers folder or hub name, and an adapter on it where there is one."""

    source: str
    revision: str | None = None
    adapter: Path | None = None
    trust_remote_code: bool = False


def generation_config(stored: Stored) -> Any:
    """transformers' generation config of a policy, as its loaded model would have it."""
    options: dict[str, Any] = {} if stored.revision is None else {"revision": stored.revision}
    code = {"trust_remote_code": stored.trust_remote_code}
    try:
        return GenerationConfig.from_pretrained(stored.source, **options)
    except OSError:
        return GenerationConfig.from_model_config(
            load_pretrained(AutoConfig, stored.source, options | code)
        )


def stop_token_ids(generation: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a response: the model's, the tokenizer's, its chat template's.

    `generation`: the model's generation config.
    """
    ids = generation.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    turn = end_of_turn(tokenizer)[1] if tokenizer.chat_template else None
    return sorted({i for i in (*ids, tokenizer.eos_token_id, turn) if i is not None})
