"""All clients in this process, many in one pass: as many waves as memory asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fedloom.client.local import LocalRules, batch_tokens, train_locally
from fedloom.client.work import ClientWork
from fedloom.federation.aggregate import ClientUpdate
from fedloom.federation.peers import PeerState, Trained
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Layout
from fedloom.model.stacked import StackedModel


def run_clients(
    model: StackedModel,
    adapter: Row,
    work: Iterable[ClientWork],
    rules: LocalRules,
    used: Row | None = None,
) -> Iterator[ClientUpdate]:
    """Train clients from one shared adapter, wave by wave, and hand over each one's update.

    An update's adapter is a view of the wave's bank: use it before asking for the next.

    Args:
        model: The frozen base with stacked adapters.
        adapter: Where every client starts.
        work: What each client does.
        rules: How clients train.
        used: Adapter parameters that nobody trains; part of the model, the same for all.
    """
    for wave in waves(work, model.layout, rules.wave_tokens):
        bank = AdapterBank.repeat(adapter, len(wave))
        result = train_locally(model, bank, [client.steps for client in wave], rules, used=used)
        for k, client in enumerate(wave):
            yield ClientUpdate(
                client=client.client,
                adapter=result.bank.row(k),
                examples=client.examples,
                loss=float(result.loss[k]),
                correct=int(result.correct[k]),
                labels=int(result.labels[k]),
                tokens=int(result.tokens[k]),
            )


def train_peers(
    model: StackedModel,
    state: PeerState,
    work: Iterable[ClientWork],
    rules: LocalRules,
    used: Row,
    first: int = 0,
) -> Trained:
    """Train peers, each from its own row, wave by wave.

    Args:
        model: The frozen base with stacked adapters.
        state: Where the peers are; one without work stays there.
        work: What each peer that trains does.
        rules: How peers train.
        used: Adapter parameters that nobody trains, the same for all.
        first: The number of the peer in the first row.
    """
    bank = state.bank.map(torch.clone)
    optimiser = {key: t.clone() for key, t in state.optimiser.items()}
    loss = torch.full((bank.clients,), torch.nan, dtype=torch.float64)
    correct, labels, tokens = (torch.zeros(bank.clients, dtype=torch.long) for _ in range(3))
    for wave in waves(work, model.layout, rules.wave_tokens):
        rows = torch.tensor([peer.client - first for peer in wave])
        here = rows.to(bank.device)
        own = {key: t.index_select(0, here) for key, t in optimiser.items()}
        steps = [peer.steps for peer in wave]
        result = train_locally(model, bank.rows(rows.tolist()), steps, rules, own, used)
        for name, t in result.bank.tensors.items():
            bank.tensors[name].index_copy_(0, here, t)
        for key, t in result.state.items():
            optimiser[key].index_copy_(0, here, t)
        loss[rows] = result.loss
        correct[rows], labels[rows], tokens[rows] = result.correct, result.labels, result.tokens
    return Trained(bank, optimiser, loss, correct, labels, tokens)


def waves(work: Iterable[ClientWork], layout: Layout, wave_tokens: int) -> Iterator[list[ClientWork]]:
    """Group clients, in order, so that no optimiser step of a wave has more than ``wave_tokens`` tokens.

    A client whose own step is larger is a wave of its own; its steps take several passes.
    """
    wave: list[ClientWork] = []
    filled = 0
    for client in work:
        cost = max(sum(batch_tokens(batch, layout) for batch in step) for step in client.steps)
        if wave and filled + cost > wave_tokens:
            yield wave
            wave, filled = [], 0
        wave.append(client)
        filled += cost
    if wave:
        yield wave
