"""Compile every kernel as it can be launched, for a GPU that need not be there; read figures.

`python -m comal_kernels.static --arch 90` prints one JSON object per kernel and configuration.
TRITON_INTERPRET must not be set: interpreted kernels have no machine code.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from comal_kernels.ops import tuning
from comal_kernels.ops.linear_logprob.kernels import combine_kernel, partial_kernel
from comal_kernels.ops.prox_loss.kernels import gradient_kernel, reduce_kernel

ELEMENT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MATRIX = re.compile(r"\b(UTC[A-Z]*MMA|HGMMA|HMMA|QGMMA)\b")


@dataclass(frozen=True)
class Case:
    """One kernel as one launch specialises it."""

    kernel: str
    config: str
    function: Any
    types: dict[str, str]  # run-time arguments
    constants: dict[str, object]
    warps: int
    stages: int
    aligned: bool  # sizes, strides and pointers are multiples of 16


@dataclass(frozen=True)
class Figures:
    """What the compiler made of a case. matrix_instructions: name → occurrences in the code."""

    kernel: str
    config: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    matrix_instructions: dict[str, int]


def cases(arch: int) -> Iterator[Case]:
    """Every specialisation that the launchers can ask for on sm_<arch>."""
    for bias, softcap in itertools.product((False, True), (False, True)):
        flags: dict[str, object] = {"HAS_BIAS": bias, "SOFTCAP": softcap}
        label = f"bias={int(bias)} softcap={int(softcap)}"
        yield from _forward(flags, label, arch)
        yield from _epilogue(flags, label)
    splits = 1
    while splits <= tuning.MAX_SPLITS:
        constants: dict[str, object] = {"SPLITS": splits, "BLOCK_N": tuning.COMBINE_ROWS}
        types = _types(combine_kernel, "fp32")
        yield Case(
            "combine_kernel", f"splits={splits}", combine_kernel, types, constants, 4, 3, False
        )
        splits *= 2


def _forward(flags: dict[str, object], label: str, arch: int) -> Iterator[Case]:
    for (dtype, fit), tile in tuning.FORWARD[tuning.nearest(arch)].items():
        shape = f"{tile.block_n}x{tile.block_v}x{tile.block_h}"
        yield Case(
            "partial_kernel",
            f"{ELEMENT[dtype]} {shape} {label} {fit}",
            partial_kernel,
            _types(partial_kernel, ELEMENT[dtype]),
            {
                **flags,
                "EVEN": fit == "even",
                "PRECISION": "ieee",
                "BLOCK_N": tile.block_n,
                "BLOCK_V": tile.block_v,
                "BLOCK_H": tile.block_h,
            },
            tile.warps,
            tile.stages,
            fit != "odd",
        )


def _epilogue(flags: dict[str, object], label: str) -> Iterator[Case]:
    kernels = (reduce_kernel, gradient_kernel)
    for dtype, kernel, aligned in itertools.product(ELEMENT, kernels, (True, False)):
        yield Case(
            kernel.__name__,
            f"{ELEMENT[dtype]} {label} {'aligned' if aligned else 'odd'}",
            kernel,
            _types(kernel, ELEMENT[dtype]),
            {**flags, "BLOCK_V": tuning.EPILOGUE_BLOCK},
            tuning.EPILOGUE_WARPS,
            3,
            aligned,
        )


_WIDE = {"target": "*i64", "inner": "fp32", "outer": "fp32"}
_NARROW = {"x", "weight", "bias", "grads"}  # in the inputs' dtype
_FLOAT = {"logits", "lse", "coef", "logp", "tops", "totals", "picks"}


def _types(kernel: Any, element: str) -> dict[str, str]:
    result = {}
    for name in kernel.arg_names:
        if name.isupper():
            continue
        if name in _NARROW:
            result[name] = f"*{element}"
        elif name in _FLOAT:
            result[name] = "*fp32"
        else:
            result[name] = _WIDE.get(name, "i32")
    return result


def tool(name: str) -> str | None:
    """A binary of the CUDA toolkit: the one in the triton wheel, or one on the PATH."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(bundled) if bundled.exists() else shutil.which(name)


def measure(case: Case, arch: int) -> Figures:
    """Compile a case for sm_<arch> and read registers, spills, shared memory, instructions."""
    names = case.function.arg_names
    signature = {n: case.types.get(n, "constexpr") for n in names}
    hint = [["tt.divisibility", 16]]
    sized = [n for n, t in case.types.items() if t.startswith("*") or t == "i32"]
    # what has 16 as a divisor only by chance; a view's start may be odd where sizes are
    loose = {"n", "splits", "split_tiles"} if case.aligned else set(case.types)
    attrs = {(names.index(n),): hint for n in sized if n not in loose}
    constants = {(names.index(n),): v for n, v in case.constants.items()}
    source = ASTSource(case.function, signature, constants, attrs)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": case.warps, "num_stages": case.stages},
    )
    usage, code = _inspect(compiled.asm["cubin"])
    return Figures(
        case.kernel,
        case.config,
        arch,
        registers=int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        spill_bytes=int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=dict(Counter(MATRIX.findall(code))),
    )


def _inspect(cubin: bytes) -> tuple[str, str]:
    path = tool("cuobjdump")
    if path is None:
        raise RuntimeError("cuobjdump: neither in the triton wheel nor on the PATH")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        texts = [
            subprocess.run([path, flag, file.name], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        ]
    return texts[0].stdout, texts[1].stdout


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m comal_kernels.static", description=__doc__)
    parser.add_argument("--arch", type=int, default=90, help="compute capability × 10")
    parser.add_argument("--match", default="", help="only those in which this expression is found")
    options = parser.parse_args(arguments)
    for case in cases(options.arch):
        if re.search(options.match, f"{case.kernel} {case.config}"):
            print(json.dumps(asdict(measure(case, options.arch))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
