"""Which key each client's number belongs to: who says a number is believed only with its key."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from fedloom.errors import UserError

KEYS_FILE = "client_keys.json"
"""In a run's folder: the fingerprint of each client's key, by its number from 1."""


@dataclass
class Keys:
    """The keys of the clients of a run.

    Attributes:
        known: By client, from 0, the fingerprint of its key.
        fixed: Whether these are all: the owner has listed them. Otherwise a number belongs to the key that
            gave it first, for as long as the run lasts, also after a resume.
    """

    known: dict[int, str] = field(default_factory=dict)
    fixed: bool = False
    _begun: bool = False

    @classmethod
    def listed(cls, template: str, clients: int) -> Keys:
        """The keys of public key files.

        Args:
            template: Their path, with ``{i}`` for the client's number from 1.
            clients: How many there are.

        Raises:
            UserError: A file cannot be read, holds no public key, or two hold the same.
        """
        known: dict[int, str] = {}
        for client in range(clients):
            path = Path(template.replace("{i}", str(client + 1)))
            try:
                mark = fingerprint(path.read_bytes())
            except OSError as error:
                raise UserError(
                    f"client_keys: cannot read {path} ({error.strerror}); put the public key of client "
                    f"{client + 1} there"
                ) from None
            if mark is None:
                raise UserError(
                    f"client_keys: {path} holds no public key; give what ssh-keygen wrote as .pub"
                )
            if mark in known.values():
                raise UserError(f"client_keys: {path} is another client's key too; give each its own")
            known[client] = mark
        return cls(known, fixed=True)

    @classmethod
    def of_the_run(cls, folder: Path) -> Keys:
        """The keys that stand in a run's folder, to go on with; none where there are none.

        Raises:
            UserError: The file is damaged.
        """
        path = folder / KEYS_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls({int(number) - 1: str(mark) for number, mark in found.items()}, _begun=True)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: is not as fedloom wrote it ({error}); remove it, and numbers belong to whom "
                "gives them first from now on"
            ) from None

    def claim(self, client: int, key: bytes) -> None:
        """Let a node be a client.

        Args:
            client: The number that it gives, from 0.
            key: Its public key, as Flower has checked it.

        Raises:
            UserError: The number is that of another key.
        """
        mark = _mark(key)
        owner = self.known.get(client)
        if owner is None and not self.fixed and mark not in self.known.values():
            self.known[client] = mark
            return
        if owner != mark:
            of = [number for number, known in self.known.items() if known == mark]
            own = f"which is client {of[0] + 1}'s" if of else "which is no client's"
            belongs = f"belongs to the key {owner}" if owner else "is free"
            raise UserError(f"client {client + 1} is claimed by the key {mark}, {own}; that number {belongs}")

    def left(self, client: int) -> None:
        """Before the run begins a number that was given by mistake can be given again with another key."""
        if not self._begun and not self.fixed:
            self.known.pop(client, None)

    def begin(self) -> dict[str, str]:
        """From now on a number stays with its key; returns what `of_the_run` reads, by number from 1."""
        self._begun = True
        # In a simulation nodes have no keys: their numbers are Flower's own, and others after a resume.
        return {
            str(client + 1): mark
            for client, mark in sorted(self.known.items())
            if mark.startswith("SHA256:") and not self.fixed
        }


def fingerprint(key: bytes) -> str | None:
    """What `ssh-keygen -lf` says of a public key in OpenSSH's or PEM format; None of anything else."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization as kinds

    for load in (kinds.load_pem_public_key, kinds.load_ssh_public_key):
        try:
            public = load(key)
            line = public.public_bytes(kinds.Encoding.OpenSSH, kinds.PublicFormat.OpenSSH)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        blob = base64.b64decode(line.split()[1])
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return None


def _mark(key: bytes) -> str:
    return fingerprint(key) or f"bytes:{hashlib.sha256(key).hexdigest()[:16]}"
