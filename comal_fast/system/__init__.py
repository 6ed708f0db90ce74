"""Processes, allocator, peak memory, terminal, ranks: nothing of COMAL."""
