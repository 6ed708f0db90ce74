"""A CUDA device that is not there: code for GPUs runs, on one whose memory is the host's.

`load()` before anything imports torch, then `start()`. Tensors say cuda:0, mixed devices are
refused, and `Waits` counts what makes the host wait. Wants a C++ compiler; on a build of torch with
CUDA it stands in front of what that has.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")


def compiler() -> str | None:
    """The C++ compiler, where there is one."""
    return shutil.which("c++") or shutil.which("g++")


def build() -> Path:
    """The library made of `device.cpp`: compiled once for a source and a torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.submodule_search_locations
    torch = Path(spec.submodule_search_locations[0])
    text = SOURCE.read_bytes() + (torch / "version.py").read_bytes() + str(torch).encode()
    name = f"cuda-standin-{hashlib.sha256(text).hexdigest()[:16]}.so"
    library = Path(sys.prefix) / name
    if not library.is_file():
        made = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w", f"-Wl,-rpath,{torch / 'lib'}"]
        include = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        link = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        command = [str(compiler()), *flags, *include, str(SOURCE), "-o", str(made), *link]
        subprocess.run(command, check=True)
        made.replace(library)
    return library


def load() -> None:
    """Be there when torch first asks for its devices; before `import torch`."""
    os.environ["TORCH_CUDNN_SDPA_DEPRIORITIZED"] = "1"  # or SDPA asks the driver for the device
    ctypes.CDLL(str(build()))


def start() -> None:
    """Let torch.cuda know the device, and the operators that only a GPU has."""
    from cuda_standin import operators, runtime

    ctypes.CDLL(str(build())).stand_in()
    runtime.install()
    operators.install()
