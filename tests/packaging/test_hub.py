"""The hub's layout: imported from its folder, by the hub's loader too, beside the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modules import load

BY_HAND = """
import importlib.util, sys
path = sys.argv[1] + "/build/torch-cpu/__init__.py"
spec = importlib.util.spec_from_file_location("_unique", path)
kernel = sys.modules["_unique"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
BY_LOADER = """
import sys
from pathlib import Path
from kernels import get_local_kernel
kernel = get_local_kernel(Path(sys.argv[1]), backend="cpu")
"""
USE = """
import torch
import comal_kernels as installed  # beside it, not under it
h, w = torch.randn(4, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
target, cu = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 2, 4], dtype=torch.int32)
pair = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "ref_logp": torch.zeros(2)}
losses = [
    m.prox_loss(h, w, target, cu, loss="dpo", beta=0.1, **pair).loss for m in (kernel, installed)
]
sum(losses).backward()
assert losses[0] == losses[1] and kernel.prox_loss is not installed.prox_loss
out = kernel.linear_logprob(h, w, target, outputs=("logp", "entropy"))
out.entropy.sum().backward()
foreign = [n for n, m in sys.modules.items() if n.startswith("comal_kernels")]
assert all("/build/torch-" not in str(sys.modules[n].__file__) for n in foreign)
"""


@pytest.mark.parametrize("loader", [BY_HAND, BY_LOADER], ids=["by hand", "by the hub's loader"])
def test_it_loads(loader: str, tmp_path: Path) -> None:
    if loader == BY_LOADER:
        pytest.importorskip("kernels.load", reason="needs the package kernels")
    load(Path(__file__).parents[2] / "kernels" / "hub.py").build(tmp_path)
    command = [sys.executable, "-c", loader + USE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
