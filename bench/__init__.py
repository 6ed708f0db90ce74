"""Benchmarks: the only source of figures."""
