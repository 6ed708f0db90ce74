"""The `none` oracle: with `data.pairs`, where people have judged already."""

from __future__ import annotations

from comal_fast.config.oracle import NoneConfig
from comal_fast.errors import InputError
from comal_fast.oracles.base import Oracle


def make(options: NoneConfig) -> Oracle:
    """Raises InputError: there is nobody to ask."""
    raise InputError("oracle.name: none judges nothing; name an oracle")
