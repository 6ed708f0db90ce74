"""torchrun on this machine, two gloo ranks on the CPU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from forked import python

SUPPORT = Path(__file__).parent


def torchrun(*arguments: str | Path, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """`arguments`: a script with its own, or `-m` and a module."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launcher = [python(), "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    path = [str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [*launcher, *rendezvous, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
