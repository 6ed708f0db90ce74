"""A round robin between iterates and runs on the same held-out prompts, and the game it makes."""
