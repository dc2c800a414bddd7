"""How good an adapter is: its loss, its answers, its classes."""
