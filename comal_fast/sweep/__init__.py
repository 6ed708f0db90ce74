"""A grid of runs: resumed, sharing what they have in common, and judged against each other."""
