"""What to say where a library that an integration needs is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(package: str, integration: str) -> ModuleType:
    """The package. Raises ImportError, a line that says what to install, where it isn't there."""
    try:
        found = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and lacks something itself
            raise
    else:
        if found.__file__ is not None:  # a folder of the same name is not it
            return found
    raise ImportError(
        f"comal_kernels.integrations.{integration} needs the package {package}; "
        f"pip install {package}"
    ) from None
