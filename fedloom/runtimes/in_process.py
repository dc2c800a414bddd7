"""All clients in this process, many in one pass: as many waves as memory asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import torch

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.private import Noised
from fedloom.client.steps import batch_tokens
from fedloom.client.work import ClientWork
from fedloom.data.randomness import derive_seed
from fedloom.federation.algorithm import (
    MOMENTS,
    PERSONAL,
    RULE,
    SENT,
    Algorithm,
    as_remembered,
    moments_of,
    part_of,
    with_prefix,
)
from fedloom.federation.peers import PeerState, Trained
from fedloom.federation.secure_sum import Counts
from fedloom.federation.update import Update, encode_update
from fedloom.model.adapters.ranks import within_ranks
from fedloom.model.bank import AdapterBank, Row
from fedloom.model.layout import Layout
from fedloom.model.stacked import StackedModel
from fedloom.runtimes.own_models import train_own_models


def run_clients(
    model: StackedModel,
    adapter: Row,
    work: Iterable[ClientWork],
    rules: LocalRules,
    algorithm: Algorithm,
    *,
    frozen: Row | None = None,
    received: Row | None = None,
    memories: Mapping[int, Row] | None = None,
    first: Row | None = None,
    seed: int = 0,
    round_: int = 0,
    change: Callable[[int, Row], Row] = lambda client, delta: delta,
    clip: float = math.inf,
) -> Iterator[Update]:
    """Train clients from one shared adapter, wave by wave, and hand over what each one sends.

    A payload may be of views of the wave's bank: use it before asking for the next.

    Args:
        model: The frozen base with stacked adapters.
        adapter: Where every client starts; what it trains and sends.
        work: What each client does.
        rules: How clients train.
        algorithm: What of its parts is the clients': how changes are encoded.
        frozen: What else the server's adapter has. Of it clients have personal parameters of their own;
            nobody trains the others.
        received: What the server sent for the clients' rule.
        memories: What clients remember, by client.
        first: What one remembers that is not there, and the names of all that one does: see `first_memory`.
        seed: The run's; random choices of the codec and of secure sums depend on it, the
            round and the client.
        round_: Which round.
        change: ``(client, its change) -> what it sends as that``: an attacker's may be another.
        clip: Largest norm of a change, where the algorithm is private.
    """
    memories, first = memories or {}, first or {}
    own_model = rules.rule.own_model
    # A whole model of its own is none of the parameters of the shared one.
    personal = part_of(first, PERSONAL) if own_model is None else {}
    frozen = {name: t for name, t in (frozen or {}).items() if name not in personal}
    for wave in waves(work, model.layout, rules.wave_tokens):
        remembered = [memories.get(client.client, first) for client in wave]
        ranks = [algorithm.ranks.clients[client.client] for client in wave] if algorithm.ranks else None
        if ranks is None:
            bank = AdapterBank.repeat(adapter, len(wave))
        else:
            bank = AdapterBank.stack([algorithm.handed_out(adapter, client.client) for client in wave])
        if personal:
            bank.tensors.update(AdapterBank.stack([part_of(row, PERSONAL) for row in remembered]).tensors)
        if ranks is not None:
            bank = AdapterBank(within_ranks(bank.tensors, ranks))
        steps = [client.steps for client in wave]
        result = train_locally(
            model,
            bank,
            steps,
            rules,
            moments_of(remembered, MOMENTS, bank),
            frozen,
            memory=AdapterBank.stack([part_of(row, RULE) for row in remembered]).tensors,
            received=received,
            ranks=ranks,
            personal=personal,
            noised=_noised(wave),
        )
        kept = with_prefix(RULE, result.memory) | with_prefix(MOMENTS, as_remembered(result.state))
        kept |= with_prefix(PERSONAL, {name: result.bank.tensors[name] for name in personal})
        tokens = result.tokens
        if own_model is not None:
            more, own_tokens = train_own_models(model, bank, steps, rules, remembered, ranks)
            kept, tokens = kept | more, tokens + own_tokens
        kept = {name: t for name, t in kept.items() if name in first}
        # Of all clients at once: on a GPU each operation takes its time to start.
        changes = {name: result.bank.tensors[name] - bank.tensors[name] for name in adapter}
        for k, client in enumerate(wave):
            payload, memory = encode_update(
                algorithm,
                client.client,
                change(client.client, {name: t[k] for name, t in changes.items()}),
                {name: t[k] for name, t in result.sent.items()},
                remembered[k] | {name: t[k] for name, t in kept.items()},
                derive_seed(seed, "codec", round_, client.client),
                clip,
            )
            loss = float(result.loss[k])
            if algorithm.secure is not None:
                counts = Counts(
                    1,
                    client.examples,
                    correct=int(result.correct[k]),
                    labels=int(result.labels[k]),
                    tokens=int(tokens[k]),
                    loss=loss,
                )
                try:
                    payload = algorithm.secure.encode(
                        payload, counts, derive_seed(seed, "secure sum", round_, client.client), clip
                    )
                except ValueError:  # nothing of it can be added up
                    payload, loss = algorithm.secure.like(payload), math.nan
            yield Update(
                client=client.client,
                payload=payload,
                examples=client.examples,
                loss=loss,
                correct=int(result.correct[k]),
                labels=int(result.labels[k]),
                tokens=int(tokens[k]),
                steps=len(client.steps),
                # The wave's bank need not outlive the wave.
                memory={name: t.clone() for name, t in memory.items()},
            )


def _noised(wave: Sequence[ClientWork]) -> list[Noised]:
    return [one.noised for one in wave if one.noised is not None]


def train_peers(
    model: StackedModel,
    state: PeerState,
    work: Iterable[ClientWork],
    rules: LocalRules,
    frozen: Row,
    first: int = 0,
    trains: Mapping[int, Collection[str]] | None = None,
    personal: Collection[str] = (),
) -> Trained:
    """Train peers, each from its own row, wave by wave.

    Args:
        model: The frozen base with stacked adapters.
        state: Where the peers are; one without work stays there.
        work: What each peer that trains does. Those that follow each other and train the same share waves.
        rules: How peers train.
        frozen: Adapter parameters that nobody trains, the same for all.
        first: The number of the peer in the first row.
        trains: The parameters that each peer trains in this round, by its number; the others rest, with their
            optimiser's state. None: all of the bank.
        personal: Those that are not sent.
    """
    bank = state.bank.map(torch.clone)
    optimiser = {key: t.clone() for key, t in state.optimiser.items()}
    memory = {key: t.clone() for key, t in state.memory.items()}
    loss = torch.full((bank.clients,), torch.nan, dtype=torch.float64)
    correct, labels, tokens = (torch.zeros(bank.clients, dtype=torch.long) for _ in range(3))
    own_names = {} if trains is None else trains
    for wave in waves(work, model.layout, rules.wave_tokens, alike=lambda peer: own_names.get(peer.client)):
        names = own_names.get(wave[0].client, bank.tensors.keys())
        rows = torch.tensor([peer.client - first for peer in wave])
        places = rows.to(bank.device)
        rows_here = bank.rows(rows.tolist()).tensors
        moving = AdapterBank({n: t for n, t in rows_here.items() if n in names})
        resting = {name: t for name, t in rows_here.items() if name not in moving.tensors}
        own = {
            key: t.index_select(0, places)
            for key, t in optimiser.items()
            if key.partition(".")[2] in moving.tensors
        }
        steps = [peer.steps for peer in wave]
        remembered = {key: t.index_select(0, places) for key, t in memory.items()}
        result = train_locally(
            model,
            moving,
            steps,
            rules,
            own,
            frozen,
            memory=part_of(remembered, RULE),
            received=part_of(remembered, SENT),
            resting=resting,
            personal=personal,
            noised=_noised(wave),
        )
        new = with_prefix(RULE, result.memory) | with_prefix(SENT, result.sent)
        for name, t in result.bank.tensors.items():
            bank.tensors[name].index_copy_(0, places, t)
        for key, t in result.state.items():
            optimiser[key].index_copy_(0, places, t)
        for key, t in new.items():
            memory[key].index_copy_(0, places, t)
        loss[rows] = result.loss
        correct[rows], labels[rows], tokens[rows] = result.correct, result.labels, result.tokens
    return Trained(bank, optimiser, loss, correct, labels, tokens, memory)


def waves(
    work: Iterable[ClientWork],
    layout: Layout,
    wave_tokens: int,
    alike: Callable[[ClientWork], object] = lambda client: None,
) -> Iterator[list[ClientWork]]:
    """Group clients, in order, so that no optimiser step of a wave has more than ``wave_tokens`` tokens.

    A client whose own step is larger is a wave of its own; its steps take several passes.

    Args:
        work: What each client does.
        layout: The model's.
        wave_tokens: The most tokens of a pass.
        alike: What the clients of a wave have in common.
    """
    wave: list[ClientWork] = []
    filled = 0
    for client in work:
        cost = max(sum(batch_tokens(batch, layout) for batch in step) for step in client.steps)
        if wave and (filled + cost > wave_tokens or alike(client) != alike(wave[0])):
            yield wave
            wave, filled = [], 0
        wave.append(client)
        filled += cost
    if wave:
        yield wave
