"""The verb `comal-fast watch`: a run in the terminal, as it goes."""
