"""Local training of a stack of clients. Nothing here knows whether a server exists."""
