"""Sampling responses: an interface, and a file per engine."""
