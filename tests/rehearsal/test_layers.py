"""Layers with Liger's kernels, and with the residual's own, on the stand-in device in bfloat16."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cuda_standin

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_standin.compiler() is None, reason="no C++ compiler"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
    pytest.mark.skipif(
        importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed"
    ),
]


def test_kernels_are_as_near_as_stock_layers(tmp_path: Path) -> None:
    """Of bfloat16 to float32, for outputs and for every gradient of the layers."""
    support = ROOT / "tests" / "support"
    paths = [str(support / "standin_site"), str(support), str(ROOT / "kernels"), str(ROOT)]
    out = tmp_path / "layers.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "layers_driver.py"), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(out.read_text())
    for seed in range(3):
        stock = found[f"stock {seed}"]["distance"]
        assert 0 < stock < 0.1
        for kind, norm in (("Liger", "forward"), ("fused", "_add_and_normalize")):
            assert found[f"{kind} {seed}"]["norm"] == norm
            assert found[f"{kind} {seed}"]["distance"] <= 1.5 * stock, (kind, seed, found)
