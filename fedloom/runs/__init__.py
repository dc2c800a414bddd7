"""A run's folder: who writes it, how its files are written and read, and what the run was made from."""
