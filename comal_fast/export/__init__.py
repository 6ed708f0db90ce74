"""What a run made, for other programs."""
