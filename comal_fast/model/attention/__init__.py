"""Exact attention over packed sequences: an entry of transformers' interface on top of engines.

`layout.py` says who sees whom; a file per engine computes it; `interface.py` puts them together.
"""

from comal_fast.model.attention.interface import ENGINES, choose_engine, refuse, register
from comal_fast.model.attention.layout import Layout, Options, Segment

__all__ = ["ENGINES", "Layout", "Options", "Segment", "choose_engine", "refuse", "register"]
