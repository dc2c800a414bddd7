"""Peers in one process for tests: real streams over socket pairs, a link that can be cut, and no training."""

import asyncio
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor

import torch
from cryptography.hazmat.primitives.asymmetric import rsa
from virtual_time import JumpingThread

from fedloom.federation.neighbours import moved
from fedloom.runtimes.libp2p.edges import Edges
from fedloom.runtimes.libp2p.exchange import Exchange
from fedloom.runtimes.libp2p.journal import Journal
from fedloom.runtimes.libp2p.lag import Lag
from fedloom.runtimes.libp2p.messages import PREFIX, Expected
from fedloom.runtimes.libp2p.mixes import MixingRule
from fedloom.runtimes.libp2p.node import Node
from fedloom.runtimes.libp2p.peer_store import PeerStore
from fedloom.runtimes.libp2p.schema import Schema
from fedloom.runtimes.libp2p.statements import Signer
from fedloom.runtimes.libp2p.transport import Stream, Unreachable
from fedloom.runtimes.libp2p.wire import Wire


class Voices(dict):
    """A key for each peer; to make one takes a while."""

    def __missing__(self, number):
        self[number] = Signer(rsa.generate_private_key(65537, 2048), "run", number)
        return self[number]


VOICES = Voices()


def row_of(number, size=6):
    """A peer's parameters: two tensors, by its number."""
    drawn = torch.Generator().manual_seed(number)
    return {"b": torch.randn(size, 2, generator=drawn), "a": torch.randn(3, generator=drawn)}


def header_of(frame):
    """The header of a frame."""
    _, length, _ = PREFIX.unpack(frame[: PREFIX.size])
    return json.loads(frame[PREFIX.size : PREFIX.size + length])


class CutStream(Stream):
    """A stream whose link fails before certain messages."""

    def __init__(self, reader, writer, cuts):
        super().__init__(reader, writer)
        self._cuts = cuts

    async def send(self, frame):
        if self._cuts(header_of(frame)):
            self.close()
            raise ConnectionResetError("the link is cut")
        await super().send(frame)


class Link:
    """One peer's transport in a `Network`."""

    def __init__(self, network, number):
        self.network, self.number = network, number

    async def dial(self, client):
        handler = self.network.handlers.get(client)
        if handler is None or self.number in self.network.down:
            raise Unreachable(f"peer {client}")
        ends = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
        ours, theirs = (CutStream(*end, self.network.cuts) for end in ends)
        self.network.tasks.add(asyncio.ensure_future(handler(self.number, theirs)))
        return ours

    async def serve(self, handler, refused):
        self.network.handlers[self.number] = handler


class Network:
    """Peers on a graph, each with a folder; `cuts(header)` says before which messages a link fails."""

    def __init__(self, folder, graph, rounds=4, timeout=0.4, **rule):
        self.folder, self.graph, self.timeout, self.rule = folder, graph, timeout, MixingRule(**rule)
        compression = self.rule.compression
        sent = compression.codec.encode(row_of(0), 0) if compression else row_of(0)
        self.expected = Expected("run", Schema.of(sent), rounds, len(graph), bool(compression))
        self.thread = JumpingThread()
        self.handlers, self.tasks, self.down, self.made = {}, set(), set(), []
        self.cuts = lambda header: False
        self.rows = {number: row_of(number) for number in graph}

    def folders(self):
        return [str(self.folder / str(number)) for number in self.graph]

    def node(self, number, meet=True):
        """A peer that has just been started, perhaps again."""
        folder = self.folder / str(number)
        journal, store = Journal(folder), PeerStore(folder)
        near = self.graph[number]
        identities = {other: VOICES[other].identity for other in [number, *near]}
        known = {str(other): identity for other, identity in identities.items()}
        about = {"client": number, "clients": len(self.graph), "neighbors": near, "identities": known}
        journal.write("peer", **about, run="run")
        wire = Wire(
            number, len(near), self.expected, Link(self, number), self.timeout, VOICES[number], identities
        )
        exchange = Exchange(Edges(wire, journal, store, self.rule.step), near)
        node = Node(self.thread, exchange, journal, store, self.rule, Lag(self.timeout))
        if store.trained_round is not None:
            node.exchange.recover(store.trained_round)
            node.lag.lost, node.lag.training = store.since_trained(store.trained_round)
        self.made.append(node)
        self.thread.run(node.exchange.start())
        if meet:
            self.thread.run(node.exchange.meet())
        return node

    def nodes(self):
        made = {number: self.node(number, meet=False) for number in self.graph}
        self.together(made, lambda number, node: self.thread.run(node.exchange.meet()))
        return made

    def kill(self, number, node):
        """As SIGKILL: nothing more is said, answered or written."""
        self.down.add(number)
        self.handlers.pop(number, None)
        self.thread.run(node.exchange.edges.stop())
        node.journal.close()

    def revive(self, number):
        self.down.discard(number)
        return self.node(number)

    def together(self, nodes, do):
        """Each peer in a thread of its own, as in a process of its own."""
        self.thread.more(len(nodes) - 1)  # this one only waits
        still = iter(range(len(nodes) - 1, -1, -1))

        def then_leave(number, node):
            try:
                return do(number, node)
            finally:
                if next(still):  # after the last of them this one goes on
                    self.thread.more(-1)

        with ThreadPoolExecutor(len(nodes)) as pool:
            running = {number: pool.submit(then_leave, number, node) for number, node in nodes.items()}
            return {number: future.result() for number, future in running.items()}

    def play(self, nodes, round_):
        """A round of these peers, whose training changes nothing; returns what each mixed."""

        def one(number, node):
            node.begin(round_)
            if node.store.trained_round != round_:
                node.keep_trained(round_, self.rows[number], {}, 0.0)
            trained, _ = node.store.load_trained(round_)
            mix = node.swap(round_, trained)
            self.rows[number] = moved(trained, mix.differences)
            return mix

        return self.together(nodes, one)

    def play_until_late(self, nodes, number, first):
        """Rounds until this peer has mixed a row late, of which the last one's mixes are returned.

        What is in doubt is asked beside the rounds: on a busy machine its answer may miss one.
        """
        for round_ in range(first, first + 4):
            mixes = self.play(nodes, round_)
            if mixes[number].late:
                return mixes
        raise AssertionError("nothing came late")

    def finish(self, nodes):
        def one(number, node):
            mix = node.finish(self.expected.rounds)
            self.rows[number] = moved(self.rows[number], mix.differences)
            return mix

        return self.together(nodes, one)

    def total(self):
        """The sum of all peers' rows, which nothing may change."""
        return torch.cat([sum(row[name] for row in self.rows.values()).flatten() for name in "ab"])

    def close(self):
        async def end():
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

        for node in self.made:
            self.thread.run(node.exchange.edges.stop())
        self.thread.run(end())
        self.thread.close()


def flaky(probability, seed, kinds=()):
    """Links that fail before a share of all messages, of these kinds or of all."""
    drawn = random.Random(seed)
    return lambda header: (not kinds or header["kind"] in kinds) and drawn.random() < probability
