"""Options that several benches share: each bench names those that mean something to it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch

from bench.problem import Size

AUTO = Path("auto")  # --json or --plot without a file name: the standing place of results
DTYPES = ("float32", "bfloat16", "float16", "float64")


class Parser(argparse.ArgumentParser):
    """Bad options are one line, and status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"bench: error: {message} ({self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`, if it is there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{name!r} is no device; use auto, cpu or cuda") from None
    if found.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name} is not supported; use auto, cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{name}: no CUDA device is available here")
    if (found.index or 0) >= max(1, torch.cuda.device_count()):
        raise argparse.ArgumentTypeError(f"{name}: there are {torch.cuda.device_count()} devices")
    return found


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def writable(text: str) -> Path:
    """A file to write, in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    return path


_ADD: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "device": (("--device",), {"type": device, "default": "auto", "help": "auto, cpu, cuda"}),
    "dtype": (
        ("--dtype",),
        {"choices": DTYPES, "help": "default: bfloat16 on CUDA, float32 on a CPU"},
    ),
    "tokens": (("--tokens",), {"type": positive, "nargs": "+", "help": "response tokens"}),
    "hidden": (("--hidden",), {"type": positive, "help": "width of the hidden states"}),
    "vocab": (("--vocab",), {"type": positive, "help": "words of the head"}),
    "repeat": (("--repeat",), {"type": positive, "help": "timed runs of each contender"}),
    "peers": (
        ("--peers",),
        {"nargs": "+", "metavar": "PEER", "help": "only these; `none` leaves ours and the floor"},
    ),
    "json": (
        ("--json",),
        {"type": writable, "nargs": "?", "const": AUTO, "metavar": "OUT",
         "help": "write the record; without OUT under bench/results/"},
    ),
    "plot": (
        ("--plot",),
        {"type": writable, "nargs": "?", "const": AUTO, "metavar": "OUT.png",
         "help": "draw it; without OUT beside the record under bench/results/"},
    ),
}  # fmt: skip


def add(parser: argparse.ArgumentParser, *names: str, **defaults: Any) -> None:
    """Add the shared options called `names`; `defaults` replace their defaults."""
    for name in names:
        flags, keywords = _ADD[name]
        if name in defaults:
            keywords = {**keywords, "default": defaults[name]}
        parser.add_argument(*flags, **keywords)


def dtype(args: argparse.Namespace) -> torch.dtype:
    """--dtype, or what suits the device."""
    name = args.dtype or ("bfloat16" if args.device.type == "cuda" else "float32")
    return getattr(torch, name)


def default(args: argparse.Namespace, name: str, cpu: Any, cuda: Any) -> Any:
    """An option's value, or what suits the device."""
    value = getattr(args, name)
    if value is not None:
        return value
    return cuda if args.device.type == "cuda" else cpu


def size(args: argparse.Namespace) -> Size:
    """The head of --hidden, --vocab, --dtype: SmolLM2's head on a CPU, Llama 3's on a GPU."""
    hidden, vocab = default(args, "hidden", 576, 4096), default(args, "vocab", 49152, 128256)
    return Size(hidden, vocab, dtype(args), args.device)
