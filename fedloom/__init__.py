"""Federated fine-tuning of language models: many clients, one frozen base, one pass."""
