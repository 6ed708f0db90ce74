"""What every phase is given: configuration, run directory, prompts and models."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections import OrderedDict
from dataclasses import asdict, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from comal_fast.config import Config, to_dict
from comal_fast.config.schema import LoraConfig
from comal_fast.data.prompts import iteration_slice, load_prompts, split_prompts
from comal_fast.data.tokenize import TokenizedPrompt, tokenize_prompts
from comal_fast.errors import InputError
from comal_fast.model.adapters import add_adapter, freeze, is_adapter, load_adapter
from comal_fast.model.load import (
    load_model,
    load_tokenizer,
    pick_device,
    resolve_source,
    weight_files,
)
from comal_fast.optim import check_installed
from comal_fast.store.artefacts import (
    folder_key,
    hash_files,
    make_key,
    write_folder,
    write_json,
    write_text,
)
from comal_fast.store.metrics import PhaseMetrics
from comal_fast.system.allocator import keep_freed_memory
from comal_fast.system.peak import peak_gib
from comal_fast.system.ranks import is_main, world
from comal_fast.system.terminal import console

PACKAGES = ("comal-fast", "torch", "triton", "transformers", "numpy", "peft", "bitsandbytes")


class Context:
    """One run. Models are loaded when first asked for; the last used are kept."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.directory = Path(config.output_dir)
        self.device = pick_device(config.model.device)
        self.source = resolve_source(config.model)
        check_installed(config.training)
        self._start()

    def _start(self) -> None:
        if self.device.type == "cpu":
            keep_freed_memory()
        self._models: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the models goes to a phase's own process."""
        return {name: x for name, x in self.__dict__.items() if name != "_models"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._start()

    def write_headers(self) -> None:
        """config.yaml and env.json."""
        tree = yaml.safe_dump(to_dict(self.config), sort_keys=False, allow_unicode=True)
        write_text(self.directory / "config.yaml", tree)
        environment = {
            "versions": self.versions(),
            "python": platform.python_version(),
            "device": self.device_name(),
            "ranks": world(),
            "threads": torch.get_num_threads(),
            "command": ["comal-fast", *sys.argv[1:]],
        }
        write_json(self.directory / "env.json", environment)

    def versions(self) -> dict[str, str]:
        """Package → version."""
        found = {}
        for package in PACKAGES:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def device_name(self) -> str:
        """The accelerator's name, or `cpu` with its thread count."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu, {torch.get_num_threads()} threads"

    # iterations and their references

    def folder(self, iteration: int) -> Path:
        """iterations/NNNN."""
        return self.directory / "iterations" / f"{iteration:04d}"

    def reference_of(self, iteration: int) -> int:
        """The iterate that is the reference while `iteration` (≥ 1) trains."""
        interval = self.config.algorithm.ref_update_interval
        return (iteration - 1) // interval * interval

    # prompts

    @cached_property
    def _prompts(self) -> tuple[list[Any], list[Any], dict[Any, TokenizedPrompt]]:
        data, new = self.config.data, self.config.generation.max_new_tokens
        loaded = load_prompts(data)
        tokenized, prompts, left_out = tokenize_prompts(loaded, self.tokenizer, data, new)
        if left_out:
            console.print(
                f"  {left_out} of {len(loaded)} prompts left out: more than "
                f"data.max_prompt_length={data.max_prompt_length} tokens"
            )
        by_prompt = dict(zip(prompts, tokenized, strict=True))
        return *split_prompts(prompts, data.eval_prompts, self.config.seed), by_prompt

    def training_prompts(self, iteration: int) -> list[TokenizedPrompt]:
        """The prompts that 1-based `iteration` visits."""
        train, _, tokenized = self._prompts
        chosen = iteration_slice(train, self.config.data.prompts_per_iteration, iteration)
        return [tokenized[p] for p in chosen]

    def held_out_prompts(self) -> list[TokenizedPrompt]:
        """The prompts never trained on."""
        _, held, tokenized = self._prompts
        return [tokenized[p] for p in held]

    # models

    @cached_property
    def tokenizer(self) -> Any:
        """The initial model's tokenizer."""
        folder = self.folder(0) / "model"
        if folder_key(folder) == self._weights_key:
            return load_tokenizer(self.config.model, str(folder))
        return load_tokenizer(self.config.model)

    def model(self, iterate: int) -> Any:
        """π_iterate, from its folder; π_0 from where the config says."""
        if iterate in self._models:
            self._models.move_to_end(iterate)
            return self._models[iterate]
        lora = self.config.model.lora is not None
        most = 2 if lora or self.device.type == "cpu" else 1
        # with LoRA π_0 stays: the others rest on its tensors
        while len(going := [t for t in self._models if t or not lora]) >= most:
            del self._models[going[0]]
        self._models[iterate] = model = self._load(iterate)
        return model

    def _load(self, iterate: int) -> Any:
        folder, config = self.folder(iterate) / "model", self.config.model
        if iterate == 0:
            return self._base(config.lora) if config.lora else self._initial()
        if folder_key(folder) is None:
            raise InputError(f"{folder}: no such model; iteration {iterate} has not trained")
        if is_adapter(folder) != (config.lora is not None):
            has, asked = ("an", "none") if config.lora is None else ("no", "one")
            raise InputError(f"{folder}: it holds {has} adapter, model.lora asks for {asked}")
        if config.lora:
            return load_adapter(self.model(0), config, folder)
        return load_model(config, str(folder))

    def _base(self, lora: LoraConfig) -> Any:
        base = freeze(self._initial(), lora)
        where = self.folder(0) / "model" if self.config.model.gguf_file else Path(self.source)
        # what the adapters' files name as their base
        base.name_or_path = str(where.resolve()) if where.is_dir() else self.source
        return base

    def _initial(self) -> Any:
        config, folder = self.config.model, self.folder(0) / "model"
        if config.gguf_file is None:
            return load_model(config)
        if folder_key(folder) != self._weights_key:  # slow to dequantise: once per run
            model = load_model(replace(config, quantization="none"))
            if is_main():
                with write_folder(folder, self._weights_key) as temporary:
                    model.save_pretrained(temporary)
                    self.tokenizer.save_pretrained(temporary)
            if config.quantization == "none":
                return model
            del model
        return load_model(config, str(folder))

    def take_model(self, iterate: int) -> Any:
        """π_iterate to train in place: the caller's alone, no longer kept here.

        With LoRA what trains is its adapter, for π_0 a fresh one.
        """
        if iterate == 0 and self.config.model.lora:
            return add_adapter(self.model(0), self.config.model, self.config.seed)
        model = self.model(iterate)
        del self._models[iterate]
        return model

    def forget_models(self) -> None:
        """Let go of all that are kept here."""
        self._models.clear()

    def put_model(self, iterate: int, model: Any) -> None:
        """Keep a model that was trained into π_iterate."""
        self._models[iterate] = model

    @cached_property
    def _weights_key(self) -> str:
        files = weight_files(self.source, self.config.model.gguf_file)
        weights = hash_files(files) if files else self.source
        options = asdict(self.config.model) | {"name_or_path": None, "device": self.device.type}
        del options["lora"], options["quantization"]  # no part of the weights as they are stored
        return make_key("model", weights, options)

    @property
    def _initial_key(self) -> str:
        quantization = self.config.model.quantization
        key = self._weights_key
        return key if quantization == "none" else make_key(quantization, key)

    def model_key(self, iterate: int) -> str:
        """What π_iterate was made from."""
        if iterate == 0:
            return self._initial_key
        key = folder_key(self.folder(iterate) / "model")
        if key is None:
            raise InputError(
                f"{self.folder(iterate) / 'model'}: no such model; run `train` of iteration "
                f"{iterate} first"
            )
        return key

    # bookkeeping

    def metrics(self, phase: str, iteration: int) -> PhaseMetrics:
        """The rows of this phase."""
        path = self.directory / "metrics.jsonl" if is_main() else None
        return PhaseMetrics(path, phase, iteration, partial(peak_gib, self.device))

    def note(self, phase: str, iteration: int) -> None:
        """Say in state.json what was finished last."""
        path = self.directory / "state.json"
        state = json.loads(path.read_text()) if path.is_file() else {"done": []}
        done = [d for d in state["done"] if d != f"{iteration:04d}/{phase}"]
        write_json(path, {"done": [*done, f"{iteration:04d}/{phase}"]})

    def discard(self, path: Path) -> None:
        """Remove a file or folder that is of no use any more."""
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
