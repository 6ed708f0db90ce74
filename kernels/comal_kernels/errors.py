"""What rules a model out, as opposed to an argument of the wrong shape."""

from __future__ import annotations


class ModelError(ValueError):
    """The model, or where it is, can't do exactly what was asked for: one line says why."""
