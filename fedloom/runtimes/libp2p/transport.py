"""Encrypted streams between peers that know each other's identity, by the libp2p daemon of hivemind.

Nothing else of hivemind is used: no DHT, no relay, no public node. A peer dials the addresses of its
neighbour file and listens on its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from fedloom.errors import UserError
from fedloom.runtimes.libp2p.messages import read_frame
from fedloom.runtimes.libp2p.neighbors import Neighbor

PROTOCOL = "/fedloom/peer/2"


class Unreachable(ConnectionError):
    """Nobody answers at a neighbour's addresses."""


class Stream:
    """Frames in both directions."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, frame: bytes) -> None:
        """Send a frame."""
        self._writer.write(frame)
        await self._writer.drain()

    async def receive(self, body_limit: int) -> bytes:
        """The next frame; see `read_frame`."""
        return await read_frame(self._reader, body_limit)

    def close(self) -> None:
        """End the stream."""
        self._writer.close()


Handler = Callable[[int, Stream], Awaitable[None]]
"""``(number of the neighbour, stream that it opened)``."""


@runtime_checkable
class Transport(Protocol):
    """How a peer reaches its neighbours, by their numbers."""

    async def dial(self, client: int) -> Stream:
        """Open a stream to a neighbour.

        Raises:
            Unreachable: It does not answer.
        """

    async def serve(self, handler: Handler, refused: Callable[[str], None]) -> None:
        """Hand over the streams that neighbours open; of anybody else's only the identity."""


class Libp2p:
    """The daemon of this process; it ends when the process does, whatever ends it."""

    def __init__(self, p2p: Any, client: Any, neighbors: Mapping[int, Neighbor]) -> None:
        self._p2p, self._client, self._neighbors = p2p, client, neighbors

    @classmethod
    async def start(cls, identity: Path, listen: str, neighbors: Mapping[int, Neighbor]) -> Libp2p:
        """Start the daemon.

        Args:
            identity: The key file.
            listen: Where to listen, a multiaddr.
            neighbors: Whom to talk to.

        Raises:
            UserError: The address cannot be bound, or the daemon does not start.
        """
        _check_free(listen)
        from hivemind.p2p import P2P, P2PDaemonError
        from hivemind.p2p.p2p_daemon_bindings.p2pclient import Client

        class Plain(P2P):
            """A daemon without a DHT, a choice that hivemind has no word for."""

            DHT_MODE_MAPPING: ClassVar[dict[str, dict[str, int]]] = {"off": {}}

        try:
            p2p = await Plain.create(
                host_maddrs=[listen],
                identity_path=str(identity),
                dht_mode="off",
                auto_nat=False,
                nat_port_map=False,
                use_relay=False,
                use_auto_relay=False,
            )
        except P2PDaemonError as error:
            raise UserError(f"listen: {listen}: the libp2p daemon does not start ({error})") from None
        # Its own connection to the daemon: P2P itself has no way to dial an address.
        control = Path(p2p.daemon_listen_maddr["unix"])
        from hivemind.utils.multiaddr import Multiaddr

        client = await Client.create(
            p2p.daemon_listen_maddr, Multiaddr(f"/unix{control.with_suffix('.dial.sock')}")
        )
        return cls(p2p, client, neighbors)

    async def dial(self, client: int) -> Stream:
        """See `Transport`."""
        from hivemind.p2p import P2PDaemonError, PeerID
        from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
        from hivemind.utils.multiaddr import Multiaddr

        neighbor = self._neighbors[client]
        peer_id = PeerID.from_base58(neighbor.id)
        try:
            await self._client.connect(peer_id, [Multiaddr(address) for address in neighbor.addresses])
            _, reader, writer = await self._p2p.call_binary_stream_handler(peer_id, PROTOCOL)
        except (ControlFailure, P2PDaemonError, OSError, EOFError) as error:
            raise Unreachable(f"peer {client}: {error}") from None
        return Stream(reader, writer)

    async def serve(self, handler: Handler, refused: Callable[[str], None]) -> None:
        """See `Transport`."""
        numbers = {neighbor.id: client for client, neighbor in self._neighbors.items()}

        async def accept(info: Any, reader: StreamReader, writer: StreamWriter) -> None:
            client = numbers.get(str(info.peer_id))
            if client is None:
                writer.close()
                refused(str(info.peer_id))
            else:
                await handler(client, Stream(reader, writer))

        await self._p2p.add_binary_stream_handler(PROTOCOL, accept)

    async def close(self) -> None:
        """End the daemon."""
        self._client.close()
        await self._p2p.shutdown()
        await asyncio.sleep(0)  # the tasks that read its output end


def _check_free(listen: str) -> None:
    """Two daemons on one port would both start, and share its connections at random."""
    match = re.fullmatch(r"/(ip4|ip6)/([^/]+)/tcp/(\d+)", listen)
    if match is None:
        raise UserError(f"listen: {listen} names no address of this machine; write /ip4/HOST/tcp/PORT")
    family = socket.AF_INET6 if match[1] == "ip6" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((match[2], int(match[3])))
        except OSError as error:
            raise UserError(
                f"listen: {listen} cannot be bound ({error.strerror}); choose another port or address"
            ) from None
