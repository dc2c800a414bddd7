"""`fedloom audit-privacy`, the other half: what a server rebuilds of one example from a client's change.

The client is real: one step on one example, by the engine that trains all, before it is compressed. Four
cases: its change as it is; clipped, with the noise of the run; in the sum of as many such clients as a round
has, which is what secure aggregation tells; and examples with more tokens than a change has dimensions to
tell them apart. Only the span is tried: an attack made for noise may find more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from fedloom.client.private import Noised
from fedloom.client.work import ClientWork
from fedloom.data.encode import Tokens
from fedloom.federation.privacy.inversion import Span, distances, span_of
from fedloom.federation.privacy.user import clipped
from fedloom.federation.server import ServerState
from fedloom.model.bank import Row
from fedloom.model.layout import Batch, counted
from fedloom.runtimes.in_process import run_clients
from fedloom.training.first_layer import FirstLayer, candidates, first_layer
from fedloom.training.setup_fed import Parts


@dataclass(frozen=True)
class Inverted:
    """What became of some examples in one case.

    Attributes:
        case: Which.
        examples: How many.
        tokens: Different tokens in them, without those that all examples have, which everybody knows. The
            attacker names as many: those nearest to the span.
        recovered: How many of the named were there: over ``tokens`` it is precision and recall alike.
    """

    case: str
    examples: int
    tokens: int
    recovered: int


def invert(parts: Parts, server: ServerState, examples: int) -> list[Inverted] | None:
    """Attack some clients' examples.

    Args:
        parts: What the run is made of.
        server: Where it stands, which is where clients begin.
        examples: How many examples are attacked in each case.

    Returns:
        A row for each case that the data have, none where they are preferences; None where no factor that
        trains reads embeddings.
    """
    first = first_layer(parts.model)
    trained = parts.algorithm.trains(server.adapter.keys(), server.round)
    if first is None or not any(f"{n}.lora_{x}.weight" in trained for n in first.names for x in "AB"):
        return None
    change = partial(_change, parts, server)
    dimensions = _dimensions(parts, server, first)
    data = [tokens for tokens in parts.data.train if tokens.rejected is None]
    few = [tokens for tokens in data if _width(parts, first, tokens) <= dimensions][:examples]
    many = [tokens for tokens in data if _width(parts, first, tokens) > dimensions][:examples]
    together = data[: parts.per_round]
    known = set.intersection(*(set(tokens.ids) for tokens in data)) if data else set()
    cases: list[tuple[str, list[tuple[Row, list[Tokens]]]]] = [
        ("alone", [(change([one]), [one]) for one in few]),
        ("alone, clip and noise", [(change([one], draw=draw), [one]) for draw, one in enumerate(few)]),
        (f"sum of {len(together)} clients", [(change(together), together)] if len(together) > 1 else []),
        ("alone, more tokens than dimensions", [(change([one]), [one]) for one in many]),
    ]
    return [_inverted(parts, server, first, known, case, seen) for case, seen in cases if seen]


def _inverted(
    parts: Parts,
    server: ServerState,
    first: FirstLayer,
    known: set[int],
    case: str,
    seen: Sequence[tuple[Row, Sequence[Tokens]]],
) -> Inverted:
    """Which tokens the changes of one case give away."""
    spans = [_spans(delta, server.adapter, first) for delta, _ in seen]
    vocabulary = parts.model.model.get_input_embeddings().weight.shape[0]
    nearest = torch.full((len(seen), vocabulary), torch.inf)
    longest = max(len(text.ids) for _, texts in seen for text in texts)
    places = longest if first.by_place else 1
    for start, inputs in candidates(parts.model, first, vocabulary, places):
        for k, client_spans in enumerate(spans):
            found = distances(inputs.flatten(0, 1), client_spans).view(-1, places)
            nearest[k, start : start + len(inputs)] = found.amin(1).cpu()
    tokens = recovered = 0
    for row, (_, texts) in zip(nearest, seen, strict=True):
        there = {token for text in texts for token in _read(parts, text)} - known
        row[list(known)] = torch.inf
        tokens += len(there)
        if row.min() < 1:  # else nothing is told
            recovered += len(there.intersection(row.argsort(stable=True)[: len(there)].tolist()))
    return Inverted(case, sum(len(texts) for _, texts in seen), tokens, recovered)


def _read(parts: Parts, tokens: Tokens) -> list[int]:
    """The ids that are read; a language model's last one is predicted alone."""
    return tokens.ids if parts.model.layout.classify else tokens.ids[:-1]


def _width(parts: Parts, first: FirstLayer, tokens: Tokens) -> int:
    """How many dimensions an example's inputs have at most."""
    read = _read(parts, tokens)
    return len(read) if first.by_place else len(set(read))


def _dimensions(parts: Parts, server: ServerState, first: FirstLayer) -> int:
    """How many dimensions of inputs a change can tell apart."""
    names = parts.algorithm.trains(server.adapter.keys(), server.round)
    ranks = [server.adapter[f"{name}.lora_A.weight"].shape for name in first.names]
    down = [
        shape[0]
        for name, shape in zip(first.names, ranks, strict=True)
        if f"{name}.lora_A.weight" in names and bool(server.adapter[f"{name}.lora_B.weight"].any())
    ]
    return min(sum(down), ranks[0][1] - 1) if down else max(r for r, _ in ranks) - 1


def _spans(delta: Row, adapter: Row, first: FirstLayer) -> list[Span]:
    """What a change tells of the first layer's inputs."""
    down = [delta[n] for name in first.names if (n := f"{name}.lora_A.weight") in delta]
    found = [span_of(torch.cat(down), computed_in=first.dtype)] if down else []
    for name in first.names:
        if (up := f"{name}.lora_B.weight") in delta:
            found.append(span_of(delta[up], adapter[f"{name}.lora_A.weight"], first.dtype))
    return found


def _change(parts: Parts, server: ServerState, examples: Sequence[Tokens], draw: int | None = None) -> Row:
    """The sum of the changes of one client for each example, after one step; what is frozen is not in it.

    Args:
        parts: What the run is made of.
        server: Where it stands.
        examples: The examples.
        draw: Of the clip and the noise of so many rounds later; None: without either.
    """
    algorithm, rules = parts.algorithm, parts.rules
    names = algorithm.share(server.adapter.keys()) & algorithm.trains(server.adapter.keys(), server.round)
    trained = {name: t for name, t in server.adapter.items() if name in names}
    if draw is None:
        rules = replace(rules, privacy=None)
    work = []
    for client, tokens in enumerate(examples):
        batch = Batch([tokens], 1 / counted(tokens, parts.model.layout), (server.round, client, 0, 0))
        noised = None if rules.privacy is None else Noised(client, server.round + (draw or 0), 1.0)
        work.append(ClientWork(client, [[batch]], 1, noised))
    total = {name: torch.zeros_like(t) for name, t in trained.items()}

    def take(client: int, delta: Row) -> Row:
        for name, t in delta.items():
            total[name] += t
        return delta

    updates = run_clients(
        parts.model,
        trained,
        work,
        rules,
        algorithm,
        frozen={name: t for name, t in server.adapter.items() if name not in names},
        received=algorithm.rule.handed_out(server.rule, names),
        first=parts.first_memory,
        seed=parts.seed,
        round_=server.round,
        change=take,
    )
    for _ in updates:
        pass
    if draw is None or algorithm.privacy is None:
        return total
    total, _ = clipped(total, server.clip)
    return algorithm.privacy.noised(total, server.clip, server.round + draw)
