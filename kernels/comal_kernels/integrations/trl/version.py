"""Which TRL this is written for: its seams are private methods, and move."""

from __future__ import annotations

from comal_kernels.integrations.missing import need

KNOWN = "1.16"


def known_trl() -> None:
    """Raises ImportError, one line, where TRL is not installed, or is one that is not known."""
    found = str(need("trl", "trl").__version__)
    if found != KNOWN and not found.startswith(f"{KNOWN}."):
        raise ImportError(
            f"comal_kernels.integrations.trl is written for TRL {KNOWN}, and TRL {found} is "
            f"installed; pip install 'trl~={KNOWN}.0'"
        )
