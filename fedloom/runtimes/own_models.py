"""A model of its own that each client of a wave trains beside the shared one; see `client.rules.ditto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import State
from fedloom.client.steps import Step
from fedloom.federation.algorithm import (
    OWN_MOMENTS,
    PERSONAL,
    as_remembered,
    moments_of,
    part_of,
    with_prefix,
)
from fedloom.model.adapters.ranks import within_ranks
from fedloom.model.bank import AdapterBank, Row, usable
from fedloom.model.stacked import StackedModel


def train_own_models(
    model: StackedModel,
    shared: AdapterBank,
    steps: Sequence[Sequence[Step]],
    rules: LocalRules,
    remembered: Sequence[Row],
    ranks: Sequence[int] | None,
) -> tuple[State, Int[Tensor, " clients"]]:
    """Train each client's own model beside the shared one; see `ClientRule.own_model`.

    What of the shared model moves in this round moves of it. A client whose own model would no longer be
    finite goes on with the one that it has: the server never sees it, and cannot leave it out.

    Args:
        model: The frozen base with stacked adapters.
        shared: Where the shared model began.
        steps: Each client's optimiser steps.
        rules: How clients train the shared model.
        remembered: What each client remembers.
        ranks: Each client's LoRA rank; None: all have the adapter's own.

    Returns:
        What the clients remember of it, and the tokens that went through the model.
    """
    assert rules.rule.own_model is not None
    before = AdapterBank.stack([part_of(row, PERSONAL) for row in remembered])
    if ranks is not None:
        before = AdapterBank(within_ranks(before.tensors, ranks))
    moving, resting = before.split(shared.tensors)
    state = moments_of(remembered, OWN_MOMENTS, moving)
    result = train_locally(
        model,
        moving,
        steps,
        replace(rules, rule=rules.rule.own_model),
        state,
        received=shared.tensors,
        ranks=ranks,
        resting=resting.tensors,
    )
    new = with_prefix(PERSONAL, result.bank.tensors) | with_prefix(OWN_MOMENTS, as_remembered(result.state))
    old = with_prefix(PERSONAL, moving.tensors) | with_prefix(OWN_MOMENTS, as_remembered(state or {}))
    for k in range(len(steps)):
        if not usable({name: t[k] for name, t in new.items()}):
            for name, t in old.items():
                new[name][k] = t[k]
    return new, result.tokens
