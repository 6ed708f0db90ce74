"""What a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One line: `bad` keeps the run from working, `note` is worth knowing."""

    about: str
    status: Status
    text: str
    cure: str = ""
    """What to do about it."""

    def to_json(self) -> dict[str, Any]:
        """As a plain container."""
        return asdict(self)
