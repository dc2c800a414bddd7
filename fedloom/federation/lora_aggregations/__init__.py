"""In which space LoRA's factors are combined; every file beside this one is one way.

Each makes of the run's aggregator the one that is used: averaging the factors of B_k A_k is not averaging the
products.
"""
