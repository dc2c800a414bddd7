"""What the server does with the clients' combined change; every file beside this one is one optimiser.

A server optimiser is made of the run's rates and is a `client.optimisers.Optimiser`: it descends along the
pseudo-gradient g = −Δ / client_lr, with Δ the combined change.
"""
