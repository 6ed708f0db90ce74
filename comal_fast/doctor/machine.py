"""This machine: packages against what is supported, the device, and what will run on it."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from comal_fast.doctor.finding import Finding

OWN = ("comal-fast", "comal-kernels")
EXTRAS = {  # package → the extra that brings it, and what it is for
    "peft": ("lora", "LoRA"),
    "bitsandbytes": ("8bit", "8-bit moments on a CPU, 4-bit weights"),
    "trl": ("trl", "ProxTrainer"),
    "liger-kernel": ("gpu", "Liger's kernels inside the blocks"),
    "flash-attn": ("gpu", "FlashAttention 2 in packed passes"),
    "vllm": ("vllm", "sampling by vLLM"),
}


def machine() -> list[Finding]:
    """Everything about it."""
    return [*packages(), *extras(), *device(), *engines()]


def packages() -> Iterator[Finding]:
    """Python, and what the two distributions require, against what is installed."""
    yield Finding("python", "good", platform.python_version())
    for needed in _required():
        try:
            have = Version(version(needed.name))
        except PackageNotFoundError:
            yield Finding(
                needed.name, "bad", f"not installed; {needed} is required", _install(needed)
            )
            continue
        if needed.specifier.contains(have, prereleases=True):
            yield Finding(needed.name, "good", str(have))
        else:
            yield Finding(needed.name, "bad", f"{have}; {needed} is required", _install(needed))


def _required() -> list[Requirement]:
    """Of both distributions, without extras and what another platform needs."""
    found: dict[str, Requirement] = {}
    for own in OWN:
        try:
            lines = requires(own) or []
        except PackageNotFoundError:  # run from a folder
            continue
        for line in lines:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                found.setdefault(needed.name, needed)
    return [needed for name, needed in sorted(found.items()) if name not in OWN]


def _install(needed: Requirement) -> str:
    return f"pip install '{needed.name}{needed.specifier}'"


def extras() -> Iterator[Finding]:
    """Optional packages: there, or what one does without."""
    for name, (extra, what) in EXTRAS.items():
        try:
            yield Finding(name, "good", f"{version(name)} ({what})")
        except PackageNotFoundError:
            yield Finding(
                name, "note", f"not installed: no {what}", f"pip install 'comal-fast[{extra}]'"
            )


def device() -> Iterator[Finding]:
    """CUDA with its driver and GPUs, or the CPU."""
    import torch

    if torch.version.cuda is None:
        yield Finding("CUDA", "note", "this build of torch is for CPUs; everything runs on them")
    elif not torch.cuda.is_available():
        yield Finding(
            "CUDA",
            "note",
            f"torch is built for CUDA {torch.version.cuda}, and finds no GPU",
            "nvidia-smi shows whether there is a driver; CUDA_VISIBLE_DEVICES may hide GPUs",
        )
    else:
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            gib = found.total_memory / 2**30
            yield Finding(
                f"cuda:{i}",
                "good" if found.major >= 8 else "bad",
                f"{found.name}, {gib:.0f} GiB, compute capability {found.major}.{found.minor}, "
                f"CUDA {torch.version.cuda}",
                "" if found.major >= 8 else "bfloat16 takes an Ampere GPU (8.0) or later",
            )
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Finding(
        "CPU",
        "good",
        f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
        + (f" (OMP_NUM_THREADS={threads})" if threads else ""),
    )


def engines() -> Iterator[Finding]:
    """Which kernels, attention and 8-bit path will run here, and why not a faster one."""
    import torch

    from comal_kernels.execution import triton_installed

    cuda = torch.cuda.is_available()
    if cuda and triton_installed():
        yield Finding("log-probs and losses", "good", "Triton kernels")
    else:
        why = "Triton is not installed" if cuda else "Triton's need a GPU"
        cure = "pip install triton" if cuda else ""
        yield Finding("log-probs and losses", "note", f"torch's, in slices; {why}", cure)
    yield Finding("attention of packed passes", "good" if cuda else "note", _attention(cuda))
    bits = importlib.util.find_spec("bitsandbytes") is not None
    if cuda and triton_installed():
        yield Finding("8-bit moments", "good", "our Triton kernel")
    yield Finding(
        "nf4" if cuda else "8-bit moments, nf4",
        "good" if bits else "note",
        "by bitsandbytes" if bits else "not here: bitsandbytes is not installed",
        "" if bits else "pip install 'comal-fast[8bit]'",
    )


def _attention(cuda: bool) -> str:
    from comal_kernels.attention.varlen import FUNCTIONS, is_installed

    if not cuda:
        return "sdpa, with dense masks; the others need a GPU"
    names = [*filter(is_installed, FUNCTIONS), "flex_attention"]
    return f"bfloat16: the first of {', '.join(names)} that the model and the GPU allow"
