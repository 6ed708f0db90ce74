"""The policies of a run: π_0 from where the configuration says, the others from their folders."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from comal_fast.config import Config
from comal_fast.config.options import what
from comal_fast.config.schema import LoraConfig
from comal_fast.distributed.group import wait
from comal_fast.distributed.sharding import scatter
from comal_fast.errors import InputError
from comal_fast.model.adapters import add_adapter, freeze, is_adapter, load_adapter
from comal_fast.model.load import (
    load_model,
    load_skeleton,
    load_tokenizer,
    resolve_source,
    weight_files,
)
from comal_fast.model.stored import Stored
from comal_fast.store.artefacts import make_key
from comal_fast.store.directory import RunDirectory
from comal_fast.store.files import hash_files
from comal_fast.system.allocator import give_back
from comal_fast.system.ranks import is_main, world


class Policies:
    """π_t of one run. A model is loaded when first asked for; the last used are kept."""

    def __init__(self, config: Config, directory: RunDirectory, device: torch.device) -> None:
        self.config, self.directory, self.device = config, directory, device
        self.source = resolve_source(config.model)
        self._models: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the models goes to a phase's own process."""
        return self.__dict__ | {"_models": OrderedDict()}

    @cached_property
    def tokenizer(self) -> Any:
        """The initial model's tokenizer."""
        folder = self.directory.iteration(0).model
        if folder.holds(self._weights_key):
            return load_tokenizer(self.config.model, str(folder.path))
        return load_tokenizer(self.config.model)

    def load(self, iterate: int) -> Any:
        """π_iterate, kept here for the next who asks."""
        if iterate in self._models:
            self._models.move_to_end(iterate)
            return self._models[iterate]
        lora = self.config.model.lora is not None
        most = 2 if lora or self.device.type == "cpu" else 1
        # with LoRA π_0 stays: the others rest on its tensors
        while len(going := [t for t in self._models if t or not lora]) >= most:
            del self._models[going[0]]
        self._models[iterate] = model = self._read(iterate)
        return model

    def take(self, iterate: int) -> Any:
        """π_iterate to train in place: the caller's alone, no longer kept here.

        With LoRA what trains is its adapter, for π_0 a fresh one. Under torchrun it is sharded, and
        every rank calls it; 4-bit weights are whole on each.
        """
        if world() > 1 and self.config.model.quantization == "none":
            return self._take_part(iterate)
        return self._take_whole(iterate)

    def _take_whole(self, iterate: int) -> Any:
        if iterate == 0 and self.config.model.lora:
            return add_adapter(self.load(0), self.config.model, self.config.seed)
        model = self.load(iterate)
        del self._models[iterate]
        return model

    def _take_part(self, iterate: int) -> Any:
        """This rank's part of π_iterate, of which rank 0 reads the weights, into host memory."""
        self.forget()
        whole, config = None, self.config.model
        if is_main():
            in_host = config.model_copy(update={"device": "cpu", "liger_kernels": "off"})
            there = self.config.model_copy(update={"model": in_host})
            whole = Policies(there, self.directory, self.device)._take_whole(iterate)
        wait()  # a GGUF file is dequantised by now
        folder = None
        if config.gguf_file is not None or (iterate and not config.lora):
            folder = str(self.directory.iteration(0 if config.lora else iterate).model.path)
        part = load_skeleton(config, folder, self.device)
        if whole is not None:
            part.generation_config, part.name_or_path = whole.generation_config, whole.name_or_path
        if config.lora:
            part = add_adapter(freeze(part, config.lora), config, self.config.seed)
        scatter(whole, part, self.device)
        return part

    def keep(self, iterate: int, model: Any) -> None:
        """Keep a model that was trained into π_iterate."""
        self._models[iterate] = model

    def stored(self, iterate: int) -> Stored:
        """Where π_iterate lies. Raises InputError where it has not been trained.

        Every rank calls it together: a GGUF file is dequantised first, by rank 0.
        """
        config = self.config.model
        dequantised = self.directory.iteration(0).model
        base = Stored(self.source, config.revision, trust_remote_code=config.trust_remote_code)
        if config.gguf_file is not None:
            if is_main() and not dequantised.holds(self._weights_key):
                self._initial()
            base = replace(base, source=str(dequantised.path), revision=None)
        if iterate == 0:
            return base
        self.key(iterate)
        model = self.directory.iteration(iterate).model
        model.verify()
        return (
            replace(base, adapter=model.path)
            if config.lora
            else replace(base, source=str(model.path), revision=None)
        )

    def forget(self) -> None:
        """Let go of all that are kept here, and of the GPU memory that they held."""
        self._models.clear()
        give_back(self.device)

    def key(self, iterate: int) -> str:
        """What π_iterate was made from. Raises InputError where it has not been trained."""
        if iterate == 0:
            return self._initial_key
        folder = self.directory.iteration(iterate).model
        key = folder.key()
        if key is None:
            raise InputError(
                f"{folder.path}: no such model; run `train` of iteration {iterate} first"
            )
        return key

    def check_base(self, iterate: int) -> None:
        """Raise InputError where the weights have changed that π_iterate's adapter rests on."""
        folder = self.directory.iteration(iterate).model
        if folder.rests_on() not in (None, self.key(0)):
            raise InputError(
                f"{folder.path}: this adapter was trained on other weights than those that are in "
                f"model.name_or_path {self.source} now"
            )

    def _read(self, iterate: int) -> Any:
        folder, config = self.directory.iteration(iterate).model, self.config.model
        if iterate == 0:
            return self._base(config.lora) if config.lora else self._initial()
        if folder.key() is None:
            raise InputError(f"{folder.path}: no such model; iteration {iterate} has not trained")
        folder.verify()
        if is_adapter(folder.path) != (config.lora is not None):
            has, asked = ("an", "none") if config.lora is None else ("no", "one")
            raise InputError(f"{folder.path}: it holds {has} adapter, model.lora asks for {asked}")
        if config.lora:
            self.check_base(iterate)
            return load_adapter(self.load(0), config, folder.path)
        return load_model(config, str(folder.path))

    def _base(self, lora: LoraConfig) -> Any:
        base = freeze(self._initial(), lora)
        dequantised = self.directory.iteration(0).model.path
        where = dequantised if self.config.model.gguf_file else Path(self.source)
        # what the adapters' files name as their base
        base.name_or_path = str(where.resolve()) if where.is_dir() else self.source
        return base

    def _initial(self) -> Any:
        config, folder = self.config.model, self.directory.iteration(0).model
        if config.gguf_file is None:
            return load_model(config)
        if not folder.holds(self._weights_key):  # slow to dequantise: once per run
            model = load_model(config.model_copy(update={"quantization": "none"}))
            if is_main():
                with folder.write(self._weights_key) as temporary:
                    model.save_pretrained(temporary)
                    self.tokenizer.save_pretrained(temporary)
            if config.quantization == "none":
                return model
            del model
        return load_model(config, str(folder.path))

    @cached_property
    def _weights_key(self) -> str:
        config = self.config.model
        files = weight_files(self.source, config.gguf_file)
        weights = hash_files(files) if files else self.source
        options = what(config) | {"name_or_path": None, "device": self.device.type}
        del options["lora"], options["quantization"]  # no part of the weights as they are stored
        if not config.trust_remote_code:  # as before there was such an option
            del options["trust_remote_code"]
        return make_key("model", weights, options)

    @property
    def _initial_key(self) -> str:
        quantization = self.config.model.quantization
        key = self._weights_key
        return key if quantization == "none" else make_key(quantization, key)
