"""Rounds: how clients' updates become the next shared state."""
