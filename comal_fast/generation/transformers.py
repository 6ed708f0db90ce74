"""`generation.engine: transformers`: sampling in this process, by transformers' model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from comal_fast.config.generation import TransformersConfig
from comal_fast.errors import InputError
from comal_fast.generation.decode import Decoder
from comal_fast.generation.engine import Engine, Response, Sampled
from comal_fast.model.stored import stop_token_ids
from comal_fast.system.allocator import give_back
from comal_fast.system.faults import is_out_of_memory
from comal_fast.system.terminal import console


class TransformersEngine:
    """Our decode loop around the model's layers."""

    apart = False

    def __init__(self, options: TransformersConfig, model: Any, tokenizer: Any) -> None:
        self.options, self.model, self.tokenizer = options, model, tokenizer

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        seed: str,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[dict[int, list[Response]]]:
        """Yield {prompt index: its `count` responses}, longest prompts first, as they end.

        A part is every n-th prompt by length. Raises InputError where the model's attention can't
        be done exactly, or its logits are no numbers.
        """
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        mine = order[part[0] :: part[1]]
        if not mine:
            return
        stops = stop_token_ids(self.model.generation_config, self.tokenizer)
        while mine:
            chosen, left = [prompts[i] for i in mine], set(mine)
            try:
                for ended in Decoder(self.model, self.options, stops, seed, chosen, count).run():
                    yield {mine[i]: responses for i, responses in ended.items()}
                    left -= {mine[i] for i in ended}
                return
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self._halve(count)
            mine = [i for i in mine if i in left]

    def _halve(self, count: int) -> None:
        """After memory ran out: half the responses at a time; they are drawn as they were."""
        give_back(self.model.device)
        before = self.options.batch_size
        if before < 2 * count:
            raise InputError(
                "out of memory in sampling, with the responses to a single prompt at a time; lower "
                "generation.num_generations or generation.max_new_tokens"
            )
        self.options = self.options.model_copy(update={"batch_size": before // 2})
        console.print(
            f"  [yellow]![/] out of memory in sampling: {before // 2} responses at a time from "
            f"here on, not {before} (generation.batch_size)",
            soft_wrap=True,
        )


def make(options: TransformersConfig, policy: Sampled) -> Engine:
    """The engine, with the policy in this process's memory."""
    return TransformersEngine(options, policy.model(), policy.tokenizer)
