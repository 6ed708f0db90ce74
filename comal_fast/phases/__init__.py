"""The phases of an iteration: each reads named files and writes one artefact."""
