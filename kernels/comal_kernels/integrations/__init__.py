"""Other libraries' models and trainers: a file each, which names the package that it needs."""
