"""The code of a page, as readers copy it."""

from __future__ import annotations

import re
from pathlib import Path


def fenced(page: Path, language: str) -> list[str]:
    """Its fenced blocks of a language ("": of none), in order."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for name, code in blocks if name == language]


def python_blocks(page: Path) -> list[str]:
    """Its fenced blocks of Python, in order."""
    return fenced(page, "python")
