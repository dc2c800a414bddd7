"""Small random data and short cuts for tests of the engine."""

import copy
import random

import torch

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.steps import mean_step
from fedloom.data.encode import Tokens
from fedloom.data.randomness import derive_seed
from fedloom.model import dropout
from fedloom.model.bank import AdapterBank
from fedloom.model.layout import shared_prefix
from fedloom.model.stacked import StackedModel

BEGINNING = [3, 7, 9]  # all sequences share it


def random_sequence(rng, longest=14):
    """A beginning that all share, a question, and an answer of one to three tokens; one of three classes."""
    ids = BEGINNING + [rng.randrange(10, 90) for _ in range(rng.randrange(2, longest - 2))]
    answer = rng.randrange(1, 4) if len(ids) > 6 else 1
    return Tokens(ids, len(ids) - answer, rng.randrange(3))


def random_conversation(rng):
    """The beginning that all share, one to four answers among what others say, and who has the last word."""
    ids, answers = [*BEGINNING], []
    for _ in range(rng.randrange(1, 5)):
        ids += [rng.randrange(10, 90) for _ in range(rng.randrange(1, 5))]
        answers.append((len(ids), len(ids) + rng.randrange(1, 4)))
        ids += [rng.randrange(10, 90) for _ in range(answers[-1][1] - answers[-1][0])]
    ids += [rng.randrange(10, 90) for _ in range(rng.randrange(3))]
    return Tokens(ids, answers[0][0], -1, answers=tuple(answers))


def clients_data(steps_per_client=(10, 3, 7), seed=0, sequence=random_sequence):
    """For each client its steps, for each step two batches, for each batch two or three sequences."""
    rng = random.Random(seed)

    def batch():
        return [sequence(rng) for _ in range(rng.randrange(2, 4))]

    return [[[batch(), batch()] for _ in range(steps)] for steps in steps_per_client]


def hashed_dropout(seed, keys, device):
    """Dropout's streams as a GPU has them; in the place of `dropout._streams`."""
    return dropout._Hashes([derive_seed(seed, "dropout", *key) for key in keys], device)


def steps_of(client, data, layout):
    """One client's optimiser steps; a batch's dropout belongs to (round 0, client, number of the batch)."""
    steps, number = [], 0
    for batches in data:
        keys = [(0, client, number + i) for i in range(len(batches))]
        steps.append(mean_step(batches, layout, keys))
        number += len(batches)
    return steps


def make_stacked(base, config, data=None, packed=None):
    """A stacked model on a copy of ``base``; what all of ``data`` begin with is computed once per client."""
    model = StackedModel(copy.deepcopy(base), copy.deepcopy(config), seed=1, packed=packed)
    if data is not None:
        model.share_prefix(shared_prefix([s for client in data for step in client for b in step for s in b]))
    return model


def start_bank(model, clients, dtype=torch.float64):
    """Everybody's first adapter."""
    return AdapterBank.repeat(model.initial, clients).map(lambda t: t.to(dtype))


def train_stacked(base, config, data, optimiser, **rules):
    """Train all clients in shared passes, from the same start."""
    model = make_stacked(base, config, data)
    work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]
    return train_locally(
        model, start_bank(model, len(data), base.dtype), work, LocalRules(optimiser, **rules)
    )


def apart(row, reference):
    """Relative difference over all of an adapter's parameters together."""
    assert row.keys() == reference.keys()
    difference = sum((row[n] - reference[n]).double().square().sum() for n in reference) ** 0.5
    return float(difference / sum(t.double().square().sum() for t in reference.values()) ** 0.5)


def moved(row, start):
    """Whether training changed an adapter: equality of two that stood still would prove nothing."""
    return apart(row, {name: t.to(row[name].dtype) for name, t in start.items()}) > 1e-4
