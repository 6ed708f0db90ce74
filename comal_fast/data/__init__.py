"""Prompts: loading, splitting, tokenising."""
