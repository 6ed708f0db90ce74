"""What the compiler makes of every kernel as it can be launched, for a GPU that need not be there.

TRITON_INTERPRET must not be set: interpreted kernels have no machine code.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.measure.sass import MATRIX
from comal_fast.optim.adamw_kernel import BLOCK, ROWS, adamw_kernel
from comal_kernels.engines.triton import tuning
from comal_kernels.engines.triton.forward_kernels import (
    combine_kernel,
    partial_kernel,
    pick_kernel,
)
from comal_kernels.engines.triton.statistics_kernels import slopes_kernel, statistics_kernel
from comal_kernels.engines.triton.training_kernels import (
    gradient_kernel,
    reduce_kernel,
    scale_in_place_kernel,
    scale_kernel,
    soften_kernel,
)

ELEMENT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


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
        every = set(ELEMENT)
        yield from _products(partial_kernel, tuning.FORWARD, every, flags, label, arch)
        softened = tuning.SOFT[tuning.nearest(arch)]
        for store, some in ((False, False), (True, False), (True, True)):
            for even in (False, True):
                ways: dict[str, object] = {"STORE": store, "SOME": some, "EVEN_V": even}
                name = f"{label} store={int(store)} some={int(some)} words={int(even)}"
                dtypes = softened if store else every
                options = {**flags, **ways, "GROUP": tuning.GROUP}
                yield from _products(soften_kernel, tuning.SOFTEN, dtypes, options, name, arch)
        yield from _epilogue(flags, label)
    constants: dict[str, object] = {
        "BLOCK_N": tuning.COMBINE_ROWS,
        "BLOCK_S": tuning.COMBINE_SPLITS,
    }
    types = _types(combine_kernel, "fp32")
    yield Case("combine_kernel", "", combine_kernel, types, constants, 4, 3, False)
    yield from _scalings()
    yield from update_cases()


def update_cases() -> Iterator[Case]:
    """The optimiser's kernel: it measures gradients in the backward pass, and clips after it."""
    floats = ("keep", "rate", "beta1", "gain1", "beta2", "gain2", "root", "eps")
    other = {"num_elements": "i32", "first": "i64", "seed": "i64", **dict.fromkeys(floats, "fp32")}
    for weights, state, rounded, alone in itertools.product(
        ("bf16", "fp32"), ("8bit", "float32"), (True, False), ("squares", "divisor")
    ):
        if weights == "fp32" and (rounded or state == "float32"):
            continue  # torch's own update
        moment = "*u8" if state == "8bit" else "*fp32"
        pointers = {"weights": f"*{weights}", "gradient": f"*{weights}", alone: "*fp32"}
        pointers |= {"exp_avg": moment, "exp_avg_sq": moment}
        if state == "8bit":
            pointers |= {"exp_avg_scale": "*fp32", "exp_avg_sq_scale": "*fp32"}
        types = {n: t for n in adamw_kernel.arg_names if (t := (pointers | other).get(n))}
        constants: dict[str, object] = {"ROUNDED": rounded, "ROWS": ROWS, "BLOCK": BLOCK}
        constants |= {n: None for n in adamw_kernel.arg_names if n not in types | constants}
        for aligned in (True, False) if state == "float32" else (True,):
            fit = "even" if aligned else "odd"
            name = f"{weights} {state} rounded={int(rounded)} {alone} {fit}"
            yield Case("adamw_kernel", name, adamw_kernel, types, constants, ROWS, 3, aligned)


def _products(
    function: Any,
    tables: dict[int, tuning.Table],
    dtypes: set[torch.dtype],
    flags: dict[str, object],
    label: str,
    arch: int,
) -> Iterator[Case]:
    """The cases of a kernel that holds the head's product: every tile of its table."""
    for (dtype, fit), tile in tables[tuning.nearest(arch)].items():
        if dtype not in dtypes or (fit == "wide" and (flags["HAS_BIAS"] or flags["SOFTCAP"])):
            continue
        element, h = ELEMENT[dtype], tile.block_h
        if "SOME" in flags:
            flags = {**flags, "FLATTEN": tile.persistent and not flags["SOME"]}
        types = _types(function, element)
        if tile.tma:
            types["x"] = f"tensordesc<{element}[{tile.block_n}, {h}]>"
            types["weight"] = f"tensordesc<{element}[{tile.block_v}, {h}]>"
            if flags.get("STORE"):
                types["soft"] = f"tensordesc<{element}[{tile.block_n}, {tile.block_v // 2}]>"
        yield Case(
            function.__name__,
            f"{element} {tile.block_n}x{tile.block_v}x{h} {label} {fit}",
            function,
            types,
            {
                **flags,
                "EVEN": fit == "even" and not tile.tma,
                "TMA": tile.tma,
                "PRECISION": "ieee",
                "BLOCK_N": tile.block_n,
                "BLOCK_V": tile.block_v,
                "BLOCK_H": h,
            },
            tile.warps,
            tile.stages,
            fit != "odd",
        )


def _epilogue(flags: dict[str, object], label: str) -> Iterator[Case]:
    for dtype, aligned in itertools.product(ELEMENT, (True, False)):
        yield Case(
            "pick_kernel",
            f"{ELEMENT[dtype]} {label} {'aligned' if aligned else 'odd'}",
            pick_kernel,
            _types(pick_kernel, ELEMENT[dtype]),
            {**flags, "BLOCK_H": tuning.PICK_BLOCK},
            4,
            3,
            aligned,
        )
    narrow: dict[str, object] = {"BLOCK_V": tuning.STATISTICS_BLOCK}
    sweeps: list[tuple[Any, dict[str, object], str]] = [
        (reduce_kernel, {}, ""),
        (gradient_kernel, {}, ""),
        (statistics_kernel, {"KEEP": False, **narrow}, " keep=0"),
        (statistics_kernel, {"KEEP": True, **narrow}, " keep=1"),
        (slopes_kernel, {}, ""),
    ]
    for dtype, sweep, aligned in itertools.product(ELEMENT, sweeps, (True, False)):
        kernel, own, name = sweep
        yield Case(
            kernel.__name__,
            f"{ELEMENT[dtype]} {label}{name} {'aligned' if aligned else 'odd'}",
            kernel,
            _types(kernel, ELEMENT[dtype]),
            {**flags, "BLOCK_V": tuning.EPILOGUE_BLOCK, **own},
            tuning.EPILOGUE_WARPS,
            3,
            aligned,
        )


def _scalings() -> Iterator[Case]:
    """Yield the kernels that multiply gradients by a factor, of float32 products too."""
    constants: dict[str, object] = {"BLOCK": tuning.EPILOGUE_BLOCK}
    for element, aligned in itertools.product(ELEMENT.values(), (True, False)):
        for source in sorted({element, "fp32"}):
            types = _types(scale_kernel, element) | {"x": f"*{source}"}
            name = f"{source} to {element} {'aligned' if aligned else 'odd'}"
            yield Case("scale_kernel", name, scale_kernel, types, constants, 4, 3, aligned)
        kernel, name = scale_in_place_kernel, f"{element} {'aligned' if aligned else 'odd'}"
        types = _types(kernel, element)
        yield Case("scale_in_place_kernel", name, kernel, types, constants, 4, 3, aligned)


_OTHER = {
    **dict.fromkeys(("target", "ids"), "*i64"),
    **dict.fromkeys(("due", "any_due"), "*i32"),
    **dict.fromkeys(("inner", "outer"), "fp32"),
    "likeliest": "*i8",
    "numbers": "*fp64",
}
_NARROW = {"x", "weight", "bias", "grads", "soft", "out"}  # in the inputs' dtype
_FLOAT = {"logits", "lse", "lses", "coef", "logp", "shift", "tops", "rests", "totals", "picks"}
_FLOAT |= {"factor", "of_p", "of_entropy", "of_every", "of_target", "of_ids"}


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
            result[name] = _OTHER.get(name, "i32")
    return result


def tool(name: str) -> str | None:
    """A binary of the CUDA toolkit: the one in the triton wheel, or one on the PATH."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return str(bundled) if bundled.exists() else shutil.which(name)


def measure(case: Case, arch: int) -> Figures:
    """The registers, spills, shared memory and instructions of a case compiled for sm_<arch>."""
    return inspect(case, arch)[0]


def inspect(case: Case, arch: int) -> tuple[Figures, str]:
    """`measure`, and the machine code as text."""
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
    figures = Figures(
        case.kernel,
        case.config,
        arch,
        registers=int(re.search(r"REG:(\d+)", usage)[1]),  # type: ignore[index]
        spill_bytes=int(re.search(r"STACK:(\d+)", usage)[1]),  # type: ignore[index]
        shared_bytes=compiled.metadata.shared,
        matrix_instructions=dict(Counter(MATRIX.findall(code))),
    )
    return figures, code


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
