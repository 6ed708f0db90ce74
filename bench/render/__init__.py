"""Records as tables, pictures and documents."""
