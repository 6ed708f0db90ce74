"""A language model that plays a known game: built, and measured exactly after a run."""
