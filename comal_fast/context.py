"""What every phase is given: configuration, run directory, prompts and policies."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import yaml

from comal_fast.config import Config, to_dict
from comal_fast.config.validate import needs_samples
from comal_fast.data.pairs import TokenizedPair, left_out_line, load_pairs, tokenize_pairs
from comal_fast.data.prompts import Prompt, iteration_slice, load_prompts, split_prompts
from comal_fast.data.template import end_of_turn
from comal_fast.data.tokenize import TokenizedPrompt, tokenize_prompts
from comal_fast.model.load import check_sizes, pick_device
from comal_fast.optim import check_installed
from comal_fast.policies import Policies
from comal_fast.store.directory import RunDirectory
from comal_fast.store.files import write_json, write_text
from comal_fast.store.metrics import PhaseMetrics
from comal_fast.system.allocator import configure_cuda_allocator, keep_freed_memory
from comal_fast.system.machine import environment, sum_in_one_order
from comal_fast.system.peak import peak_gib
from comal_fast.system.ranks import is_main
from comal_fast.system.terminal import console


class Context:
    """One run. Nothing is read or written before it is asked for."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = RunDirectory(config.output_dir)
        self.device = pick_device(config.model.device)
        self.policies = Policies(config, self.directory, self.device)
        check_installed(config.training, self.device)
        self._settle()

    def _settle(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
            return
        configure_cuda_allocator()
        if self.config.training.deterministic:
            sum_in_one_order()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state in a phase's own process, which has an allocator to settle anew."""
        self.__dict__ |= state
        self._settle()

    @property
    def tokenizer(self) -> Any:
        """The initial model's tokenizer."""
        return self.policies.tokenizer

    def write_headers(self) -> None:
        """Write config.yaml and env.json."""
        tree = yaml.safe_dump(to_dict(self.config), sort_keys=False, allow_unicode=True)
        write_text(self.directory.config, tree)
        write_json(self.directory.environment, environment(self.device))

    def metrics(self, phase: str, iteration: int) -> PhaseMetrics:
        """What logs the rows of this phase; those of an earlier attempt are dropped at once."""
        path = self.directory.metrics if is_main() else None
        return PhaseMetrics(path, phase, iteration, partial(peak_gib, self.device))

    def reference_of(self, iteration: int) -> int:
        """The iterate that is the reference while `iteration` (≥ 1) trains; 0 for 0."""
        interval = self.config.algorithm.ref_update_interval
        return max(0, iteration - 1) // interval * interval

    @cached_property
    def _pairs(self) -> dict[Prompt, list[TokenizedPair]]:
        """Those of `data.pairs` that are not left out, by prompt."""
        data = self.config.data
        assert data.pairs is not None
        loaded = load_pairs(data, data.pairs)
        new = self.config.generation.max_new_tokens if needs_samples(self.config) else 0
        pairs, left_out = tokenize_pairs(loaded.pairs, self.tokenizer, data, new)
        total = len(loaded.pairs) + sum(loaded.left_out.values())
        if left_out := left_out + loaded.left_out:
            console.print(f"  {left_out_line(left_out, total)}")
        sure = sum(p.probability is not None for p in loaded.pairs)
        if sure and self.config.pairing.labels == "hard":
            console.print(
                f"  {sure} pairs say how sure they are; pairing.labels=soft trains on that"
            )
        return pairs

    def training_pairs(self, iteration: int) -> list[TokenizedPair]:
        """Of `data.pairs` those whose prompts 1-based `iteration` visits."""
        train = iteration_slice(self._prompts[0], self.config.data.prompts_per_iteration, iteration)
        return [pair for prompt in train for pair in self._pairs[prompt]]

    def held_out_pairs(self) -> list[TokenizedPair]:
        """Of `data.pairs` those that are never trained on."""
        return [pair for prompt in self._prompts[1] for pair in self._pairs[prompt]]

    @cached_property
    def _prompts(self) -> tuple[list[Any], list[Any], dict[Any, TokenizedPrompt]]:
        data, new = self.config.data, self.config.generation.max_new_tokens
        if data.pairs is not None:
            found = {prompt: pairs[0].prompt for prompt, pairs in self._pairs.items()}
            return *split_prompts(list(found), data.eval_prompts, self.config.seed), found
        loaded = load_prompts(data)
        tokenized, prompts, left_out = tokenize_prompts(loaded, self.tokenizer, data, new)
        if left_out:
            console.print(
                f"  {left_out} of {len(loaded)} prompts left out: more than "
                f"data.max_prompt_length={data.max_prompt_length} tokens"
            )
        if end_of_turn(self.tokenizer)[1] is None:
            console.print(
                "  the chat template ends no turn by a token of its own; responses end at "
                f"{self.tokenizer.eos_token}"
            )
        by_prompt = dict(zip(prompts, tokenized, strict=True))
        return *split_prompts(prompts, data.eval_prompts, self.config.seed), by_prompt

    def check_sizes(self) -> None:
        """Raise InputError for tokens or positions that the model has not, before all work."""
        config = self.config
        prompts = list(self._prompts[2].values())
        new = config.generation.max_new_tokens if needs_samples(config) else 0
        sequences = [p.ids for p in prompts]
        longest = max(map(len, sequences), default=0) + new
        if config.data.pairs is not None:
            for pair in (pair for some in self._pairs.values() for pair in some):
                sequences += [pair.chosen_ids, pair.rejected_ids]
                response = max(len(pair.chosen_ids), len(pair.rejected_ids))
                longest = max(longest, len(pair.prompt.ids) + response)
        if config.model.gguf_file is None:  # whose tokenizer is in the same file
            check_sizes(config.model, self.policies.source, self.tokenizer, sequences, longest)

    def training_prompts(self, iteration: int) -> list[TokenizedPrompt]:
        """The prompts that 1-based `iteration` visits."""
        train, _, tokenized = self._prompts
        chosen = iteration_slice(train, self.config.data.prompts_per_iteration, iteration)
        return [tokenized[p] for p in chosen]

    def held_out_prompts(self) -> list[TokenizedPrompt]:
        """The prompts never trained on."""
        _, held, tokenized = self._prompts
        return [tokenized[p] for p in held]
