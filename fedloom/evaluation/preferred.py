"""How often a model prefers the answers that people did, and by how much, with adapters and without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from fedloom.data.encode import Tokens
from fedloom.evaluation.evaluate import margins_of_rows
from fedloom.evaluation.reference import with_references
from fedloom.evaluation.scores import accuracy_of
from fedloom.model.bank import AdapterBank
from fedloom.model.stacked import StackedModel


def preference_scores(
    model: StackedModel, bank: AdapterBank, adapters: int, preferences: Sequence[Tokens], wave_tokens: int
) -> list[dict[str, Any]]:
    """The scores of the base, and of each adapter.

    With the margin m = log π(y_w|x) − log π_ref(y_w|x) − log π(y_l|x) + log π_ref(y_l|x) of a preference, an
    answer's reward being β (log π − log π_ref) (Rafailov et al. 2023, arXiv:2305.18290), the scores are

        accuracy   share of m > 0: the chosen answer has the larger reward (that of the base, which is its own
                   reference, is 0); with its interval low, high
        logp_accuracy   share in which the model holds the chosen answer to be likelier than the rejected one
        margin          mean of β m
        logp_margin     mean of log π(y_w|x) − log π(y_l|x), in nats
        loss            of DPO, the mean of −log σ(β m)

    Args:
        model: The base with stacked adapters, and its `beta`.
        bank: The adapters.
        adapters: How many those are; 0: the base alone is judged.
        preferences: What to judge by.
        wave_tokens: Tokens per pass in training.
    """
    (known,) = with_references(model, [preferences], wave_tokens)
    references = [tokens.reference or 0.0 for tokens in known]
    every = margins_of_rows(model, bank, [known] * adapters, wave_tokens) if adapters else []
    return [_scores(margins, references, model.beta) for margins in ([0.0] * len(known), *every)]


def _scores(margins: Sequence[float], references: Sequence[float], beta: float) -> dict[str, Any]:
    ratios = [margin + reference for margin, reference in zip(margins, references, strict=True)]
    return accuracy_of([margin > 0 for margin in margins]) | {
        "logp_accuracy": mean(ratio > 0 for ratio in ratios),
        "margin": beta * mean(margins),
        "logp_margin": mean(ratios),
        "loss": mean(_softplus(-beta * margin) for margin in margins),
    }


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
