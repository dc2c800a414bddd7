"""A run: its parts made of its options, its rounds, and the loop over them."""
