"""The library's README, run as it stands there."""

from __future__ import annotations

from pathlib import Path

from blocks import python_blocks

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_its_code_runs() -> None:
    blocks = python_blocks(README)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:  # a later block uses the names of earlier ones
        exec(compile(block, str(README), "exec"), names)
