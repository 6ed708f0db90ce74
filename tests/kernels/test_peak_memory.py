"""The resident memory of a whole forward and backward pass, at the size of SmolLM2's head."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import comal_kernels

WIDTH, VOCAB, WORKSPACE = 576, 49152, 256 << 20
SLACK = 64 << 20  # buffers of the BLAS, a chunk's states, the allocator's rounding

MEASURE = """
import json, sys, torch
from comal_kernels import prox_loss

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

def run(n):
    hidden = torch.randn(n, {width}, requires_grad=True)
    target = torch.randint(0, {vocab}, (n,))
    cu = torch.arange(0, n + 1, 64)
    first = torch.arange(0, n // 64, 2)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    prox_loss(hidden, weight, target, cu, loss="ipo", eta=0.1, chosen=first, rejected=first + 1,
              ref_logp=torch.zeros(n // 64), workspace={workspace}).loss.backward()
    assert hidden.grad.isfinite().all() and weight.grad.isfinite().all()
    return status("VmHWM") - before

weight = torch.randn({vocab}, {width}).mul_(0.05).requires_grad_()
run(128)  # what libraries allocate once
weight.grad = None
print(json.dumps(run(int(sys.argv[1]))))
"""


def extra_bytes(n: int) -> int:
    """Peak above the inputs, less the gradients and the workspace."""
    script = MEASURE.format(width=WIDTH, vocab=VOCAB, workspace=WORKSPACE)
    path = str(Path(comal_kernels.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", script, str(n)],
        env={"PYTHONPATH": path, "PATH": "", "MALLOC_TRIM_THRESHOLD_": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    gradients = 4 * WIDTH * (n + VOCAB)
    return json.loads(process.stdout) - gradients - WORKSPACE


@pytest.mark.slow
@pytest.mark.nightly
def test_peak_does_not_grow_with_the_batch() -> None:
    few, many = extra_bytes(512), extra_bytes(16384)
    assert few <= SLACK and many <= SLACK, (few, many)
