"""Clients behind Flower: messages, who is there, and the two apps. Only here is flwr imported."""
