"""`comal-fast oracle check`: what an oracle says of pairs that people judged."""
