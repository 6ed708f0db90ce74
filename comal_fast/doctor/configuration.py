"""What a configuration needs: its files, its oracle, memory, disk, the hub, vLLM's environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from comal_fast.config import Config, load_config
from comal_fast.config.fixed_point import other_game
from comal_fast.config.generation import VllmConfig
from comal_fast.doctor.finding import Finding
from comal_fast.errors import InputError

HUB_SECONDS, VLLM_SECONDS = 5.0, 120.0
SPARE = 1.1  # of the disk that is counted


def configuration(file: str, overrides: Sequence[str]) -> list[Finding]:
    """Everything about it; of one that can't be read that alone."""
    try:
        config = load_config(file, overrides)
    except InputError as error:
        return [Finding("configuration", "bad", str(error))]
    found = [Finding("configuration", "good", f"{file}: every option is understood")]
    if reason := other_game(config):
        found.append(Finding("fixed point", "note", reason))
    found += [*_device(config), *_hub(config)]
    # each of its files would be tried for a minute
    away = hub_names(config) if any(f.about == "hub" and f.status == "bad" for f in found) else []
    for name, check in (
        (config.data.pairs or config.data.prompts, _data),
        (config.model.name_or_path, _tokenizer),
        (None, _oracle),
        (None, _memory),
        (None, _disk),
        (None, _vllm),
    ):
        if name is None or name not in away:
            found += check(config)
    return found


def _attempt(about: str, work: Callable[[], str]) -> Finding:
    """`work` says what is well; an InputError what is not."""
    try:
        return Finding(about, "good", work())
    except InputError as error:
        return Finding(about, "bad", str(error))


def _device(config: Config) -> Iterator[Finding]:
    from comal_fast.config.validate import check_cpu
    from comal_fast.model.load import pick_device
    from comal_fast.optim import check_installed

    def work() -> str:
        device = pick_device(config.model.device)
        if device.type == "cpu":
            check_cpu(config)
        check_installed(config.training, device)
        return str(device)

    yield _attempt("device", work)


def _data(config: Config) -> Iterator[Finding]:
    from comal_fast.data.pairs import load_pairs
    from comal_fast.data.prompts import load_prompts, split_prompts

    def work() -> str:
        if config.data.pairs is not None:
            return f"{len(load_pairs(config.data, config.data.pairs).pairs):,} pairs"
        prompts = load_prompts(config.data)
        train, held = split_prompts(prompts, config.data.eval_prompts, config.seed)
        return f"{len(train):,} prompts to train on, {len(held):,} held out"

    yield _attempt("data", work)


def _tokenizer(config: Config) -> Iterator[Finding]:
    from comal_fast.data.tokenize import check_template
    from comal_fast.model.load import load_tokenizer

    def work() -> str:
        tokenizer = load_tokenizer(config.model)
        check_template(tokenizer, config.data)
        return f"{config.model.name_or_path}: tokenizer and chat template"

    yield _attempt("model", work)


def _oracle(config: Config) -> Iterator[Finding]:
    from comal_fast.config.validate import needs_samples
    from comal_fast.oracles import make_oracle

    def work() -> str:
        make_oracle(config.oracle)
        return config.oracle.name

    if needs_samples(config):
        yield _attempt("oracle", work)


def _memory(config: Config) -> Iterator[Finding]:
    import torch

    from comal_fast.model.load import pick_device
    from comal_fast.plan.check import check_fits
    from comal_fast.plan.shapes import Unplanned

    try:
        device = pick_device(config.model.device)
    except InputError:
        return  # said already
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        check_fits(config, total)
    except Unplanned as error:
        yield Finding("memory", "note", f"not estimated: {error}")
    except InputError as error:
        yield Finding("memory", "bad", str(error))
    else:
        yield Finding("memory", "good", f"fits {total / 2**30:.0f} GiB, by the plan's estimate")


def needed_disk(config: Config) -> float:
    """Bytes of all iterates, of the checkpoints of one, and of a GGUF base's own copy.

    Raises InputError where the model's sizes can't be read.
    """
    from comal_fast.plan.modes import mode_of
    from comal_fast.plan.shapes import read_shape

    shape = read_shape(config.model)
    mode = mode_of(config, shape.layers)
    trained, item = mode.trained(shape), mode.torch_dtype.itemsize
    own = trained * (item if config.model.lora is None else mode.adapter_item)
    written = bool(config.training.save_steps or config.training.save_minutes)
    checkpoints = written * (config.training.keep_checkpoints + 1)  # one while it is written
    base = shape.parameters * item if config.model.gguf_file else 0
    state = checkpoints * trained * (item + mode.state_bytes)
    return SPARE * (config.algorithm.iterations * own + state + base)


def _disk(config: Config) -> Iterator[Finding]:
    from comal_fast.plan.shapes import Unplanned

    folder = Path(config.output_dir).expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    try:
        needed = needed_disk(config)
    except Unplanned as error:
        yield Finding("disk", "note", f"not estimated: {error}; {_gib(free)} are free at {folder}")
        return
    except InputError:
        return  # said of the model already
    text = (
        f"about {_gib(needed)} for {config.algorithm.iterations} iterates and a checkpoint, "
        f"{_gib(free)} are free at {folder}"
    )
    if free >= needed:
        yield Finding("disk", "good", text)
    else:
        cure = "another output_dir, fewer algorithm.iterations, or model.lora: iterates are whole"
        yield Finding("disk", "bad", text, cure if config.model.lora is None else "another disk")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def hub_names(config: Config) -> list[str]:
    """What the configuration would fetch from a hub: model, data, judges."""
    from comal_fast.model.load import is_hub_name

    oracle = config.oracle
    members = getattr(oracle, "members", None) or [oracle]
    names: list[str | None] = [
        config.model.name_or_path,
        config.data.pairs or config.data.prompts,
    ]
    names += [getattr(member, "model", None) for member in members if member.name != "endpoint"]
    return [name for name in names if name and is_hub_name(name)]


def _hub(config: Config) -> Iterator[Finding]:
    names = hub_names(config)
    if not names:
        return
    from huggingface_hub import get_token
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    shown = ", ".join(names)
    if HF_HUB_OFFLINE:
        yield Finding(
            "hub", "note", f"HF_HUB_OFFLINE is set: {shown} must be in the cache", "unset it"
        )
    else:
        yield _reachable(ENDPOINT, shown)
    have = get_token() is not None
    yield Finding(
        "hub token",
        "good" if have else "note",
        "there is one" if have else "none: gated models and datasets can't be fetched",
        "" if have else "hf auth login, or HF_TOKEN",
    )


def _reachable(endpoint: str, shown: str) -> Finding:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=HUB_SECONDS):
            pass
    except urllib.error.HTTPError as error:
        return Finding("hub", "note", f"{endpoint} answers with status {error.code}")
    except OSError as error:
        why = getattr(error, "reason", error)
        return Finding(
            "hub",
            "bad",
            f"{endpoint} can't be reached ({why}), and {shown} would come from it",
            "a folder in its place, or a filled cache and HF_HUB_OFFLINE=1",
        )
    return Finding("hub", "good", f"{endpoint} answers; {shown} would come from it")


def _vllm(config: Config) -> Iterator[Finding]:
    if not isinstance(config.generation, VllmConfig):
        return
    python = config.generation.vllm.python or sys.executable
    code = "import vllm; print(vllm.__version__)"
    cure = "make vllm, or generation.vllm.python of an environment that has it"
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=VLLM_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("vLLM", "bad", f"{python}: {error}", cure)
        return
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        yield Finding("vLLM", "bad", f"{python} can't import it: {last:.200}", cure)
    else:
        yield Finding("vLLM", "good", f"{done.stdout.strip().splitlines()[-1]} in {python}")
