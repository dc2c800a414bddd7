"""What all messages of a run carry, so that peers of another one are told apart, and by what.

digest of options and of what is learned . base weights . tokenizer
"""

from __future__ import annotations


def run_name(agreed: str, weights: str, tokenizer: str) -> str:
    """The name of a run.

    Args:
        agreed: Digest of what all peers must agree on, but for their base model.
        weights: Short name of the base's weights.
        tokenizer: The same of its tokenizer.
    """
    return f"{agreed}.{weights}.{tokenizer}"


def why_another(other: str, run: str) -> str:
    """What a peer has that is other than here, by the name of its run and of this one, in words."""
    (agreed, *base), (other_agreed, *other_base) = run.split("."), other.split(".")
    if agreed == other_agreed and len(base) == len(other_base) == 2:
        called = ("other base weights", "another tokenizer")
        differing = [what for what, a, b in zip(called, base, other_base, strict=True) if a != b]
        return (
            f"the sender has {' and '.join(differing)}; give both peers the same files of the model, of one "
            "revision and quantisation"
        )
    return "it belongs to another run; compare the options of both peers"
