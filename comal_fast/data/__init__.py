"""Data: rows → conversations → token ids; prompts and how they are split."""
