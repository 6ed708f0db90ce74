"""The tests' own Python for programs, where it could do harm."""

from __future__ import annotations

import subprocess

from forked import python


def test_who_ends_its_process_group_ends_alone() -> None:
    code = "import os, signal, sys; 'torch' in sys.modules and os.killpg(0, signal.SIGKILL)"
    done = subprocess.run([python(), "-c", code], start_new_session=True, timeout=120)
    assert done.returncode == -9  # 0: it was no fork
