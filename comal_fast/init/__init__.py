"""A first configuration from five answers."""
