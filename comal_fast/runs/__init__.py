"""Run directories as a collection: which there are, how they differ, what disk they take."""
