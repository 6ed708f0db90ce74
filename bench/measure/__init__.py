"""Clocks, machines, right results, processes of their own."""
