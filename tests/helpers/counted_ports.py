"""Ports that pass on what they get, and count its bytes: what a federation says to itself, at the sockets."""

import contextlib
import socket
import threading
import time


class CountedPort:
    """A port of loopback that passes connections on to another one, from when somebody listens there.

    Attributes:
        port: Its number.
        sent: Bytes from those who connect to those who listen.
        answered: Bytes back.
    """

    def __init__(self, target):
        self.target, self.sent, self.answered = target, 0, 0
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self):
        with contextlib.suppress(OSError):  # wakes who waits for the next connection
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self):
        with contextlib.suppress(OSError):  # until it is closed
            while self._socket.fileno() >= 0 and not self._is_there():
                time.sleep(0.05)
            self._socket.listen()
            while True:
                near, _ = self._socket.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                for way in ((near, far, "sent"), (far, near, "answered")):
                    threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _is_there(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.target)) == 0

    def _pass_on(self, source, sink, way):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                setattr(self, way, getattr(self, way) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
