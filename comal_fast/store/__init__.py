"""The run directory: whole files, artefacts with keys, metrics, and what everything is called."""
