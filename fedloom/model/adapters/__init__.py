"""Stacked adapters: LoRA on linear layers, prompts before the sequence, heads after it."""
