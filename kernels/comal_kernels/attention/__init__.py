"""Exact attention over packed rows: `layout.py` says who sees whom, a file per engine computes it.

An engine is imported by whoever runs it: flex_attention's costs a second.
"""

from comal_kernels.attention.layout import Engine, Layout, Options, Segment

__all__ = ["Engine", "Layout", "Options", "Segment"]
