"""COMAL: align language models with general human preferences."""

__version__ = "0.2.0"
