"""The benches, a file each: what it runs, its rows and its title."""
