"""What neighbours send over libp2p: a message of the run, or refused; and the others' edges count."""

import asyncio
import hashlib
import json
import tempfile
from contextlib import suppress
from pathlib import Path

from fuzzing import NASTY_TEXT, VALUES, damaged, fuzzed
from hypothesis import strategies as st
from peer_network import VOICES, Link, Network, header_of, row_of

from fedloom.runtimes.libp2p.messages import MAGIC, PREFIX, Expected, Message, decode, encode
from fedloom.runtimes.libp2p.schema import MessageRefused, Schema
from fedloom.runtimes.libp2p.statements import Statement
from fedloom.runtimes.libp2p.transport import Stream
from fedloom.runtimes.libp2p.wire import LOST

ROW = row_of(3)
EXPECTED = Expected("run", Schema.of(ROW), rounds=4, clients=3)
BODY = EXPECTED.schema.pack(ROW)
SAID = VOICES[3].say(1, hashlib.sha256(BODY).hexdigest(), "")
FRAMES = [
    encode(Message(*about), EXPECTED)
    for about in (
        ("hello", 3, 0, 1, 1),
        ("hello", 3, 0, 5, 1),
        ("offer", 3, 1, 1, 1, None, ROW, SAID),
        ("ready", 3, 1, 1, 1, None, ROW, SAID),
        ("question", 3, 1, 1, 1),
        ("decision", 3, 1, 1, 1, "commit"),
        ("passed", 3, 1, 1, 1),
        ("acknowledged", 3, 1, 1, 1),
    )
]
NAMES = sorted(header_of(FRAMES[0]))


@st.composite
def frames(draw):
    """A good message, one with another header, a damaged one, or anything."""
    frame = draw(st.sampled_from(FRAMES))
    match draw(st.sampled_from(["good", "header", "damaged", "any"])):
        case "good":
            return frame
        case "damaged":
            return draw(damaged(frame))
        case "any":
            return draw(st.binary(max_size=60))
    header = header_of(frame)
    _, length, _ = PREFIX.unpack(frame[: PREFIX.size])
    changed = draw(st.dictionaries(st.sampled_from(NAMES) | NASTY_TEXT, VALUES, max_size=3))
    head = json.dumps(header | changed).encode()
    body = draw(st.just(frame[PREFIX.size + length :]) | damaged(BODY))
    return PREFIX.pack(MAGIC, len(head) % 2**32, len(body)) + head + body


@fuzzed(frame=frames())
def test_a_message(folder, frame):
    with suppress(MessageRefused):
        found = decode(frame, EXPECTED, sender=3)
        assert found.sender == 3 and (found.row is None) == (found.said is None)


@fuzzed(words=st.lists(NASTY_TEXT, min_size=4, max_size=4))
def test_a_statement(folder, words):
    assert not Statement(1, *words).holds("run", 3, VOICES[3].identity)


@fuzzed(talks=st.lists(st.lists(frames(), min_size=1, max_size=3), max_size=4))
def test_whatever_a_neighbour_sends_the_other_edge_counts(folder, talks):
    with tempfile.TemporaryDirectory(dir=folder) as place:
        peers = Network(Path(place), {1: [2], 2: [1, 3], 3: [2]}, timeout=1.0)
        try:
            nodes = {number: peers.node(number, meet=False) for number in (1, 2)}
            peers.thread.run(nodes[1].exchange.edges.greet(2))
            peers.thread.run(nodes[2].exchange.edges.greet(1))

            async def say(frames):
                stream = await Link(peers, 3).dial(2)
                with suppress(*LOST):
                    for frame in frames:
                        await Stream.send(stream, frame)  # not as the network's own, which reads headers
                        await asyncio.sleep(0)
                await asyncio.sleep(0.01)
                stream.close()

            async def talk():
                await asyncio.gather(*map(say, talks))

            talking = asyncio.run_coroutine_threadsafe(talk(), peers.thread._loop)
            mixes = peers.play(nodes, 1)
            talking.result()
            assert mixes[1].neighbours == [2] and 1 in mixes[2].neighbours
        finally:
            peers.close()
