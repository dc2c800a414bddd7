"""What a peer says of its row: signed with its key and chained by round; nobody says two things unseen.

With every row goes a statement

    fedloom row 1 | run | peer | round | SHA-256 of the row | mark of the statement before

signed with the key that is the peer's identity (RSA, PKCS #1 v1.5, SHA-256). Its mark is the SHA-256 of that
text. Both ends of an edge write it into their journals. A peer that sends its neighbours different rows in a
round has signed two statements of it, or two that follow one and the same: whoever holds both has the proof.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedloom.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

NOTHING = ""
"""The mark before a peer's first statement."""


@dataclass(frozen=True)
class Statement:
    """A peer's statement of its row in a round.

    Attributes:
        round: From 1.
        row: SHA-256 of the row's bytes, in hexadecimal digits.
        before: Mark of the statement before, or `NOTHING`.
        signature: In base64.
        key: The public key, a SubjectPublicKeyInfo in DER and base64.
    """

    round: int
    row: str
    before: str
    signature: str
    key: str

    def mark(self, run: str, peer: int) -> str:
        """The name of what was said, whoever has signed it."""
        return hashlib.sha256(_text(self, run, peer)).hexdigest()

    def says_what(self, other: Statement) -> bool:
        """Whether another statement says the same, of the same round."""
        return (self.round, self.row, self.before) == (other.round, other.row, other.before)

    def holds(self, run: str, peer: int, identity: str) -> bool:
        """Whether the peer of this identity has signed it.

        Args:
            run: Digest of what all peers of the run must agree on.
            peer: Its number, from 1.
            identity: Its libp2p identity, as `fedloom identity` prints it.
        """
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_der_public_key

        try:
            encoded = base64.b64decode(self.key, validate=True)
            signature = base64.b64decode(self.signature, validate=True)
            if identity_of(encoded) != identity:
                return False
            public = load_der_public_key(encoded)
            if not isinstance(public, RSAPublicKey):
                return False
            public.verify(signature, _text(self, run, peer), _padding(), SHA256())
        except (ValueError, InvalidSignature, UnsupportedAlgorithm):
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A peer's key, to say things with.

    Attributes:
        private: The key.
        run: Digest of what all peers of the run must agree on.
        peer: Its number, from 1.
    """

    private: RSAPrivateKey
    run: str
    peer: int

    @classmethod
    def of(cls, identity: Path, run: str, peer: int) -> Signer:
        """The voice of a key file of `fedloom identity`.

        Raises:
            UserError: The file holds no RSA key.
        """
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_der_private_key
        from hivemind.proto.crypto_pb2 import PrivateKey

        private = load_der_private_key(PrivateKey.FromString(identity.read_bytes()).data, password=None)
        if not isinstance(private, RSAPrivateKey):
            raise UserError(f"identity: {identity} is no RSA key; make one with `fedloom identity`")
        return cls(private, run, peer)

    @property
    def key(self) -> str:
        """The public key, as in a statement."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = self.private.public_key()
        return base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()

    @property
    def identity(self) -> str:
        """The libp2p identity that goes with it."""
        return identity_of(base64.b64decode(self.key))

    def say(self, round_: int, row: str, before: str) -> Statement:
        """Sign a statement; see there."""
        from cryptography.hazmat.primitives.hashes import SHA256

        said = Statement(round_, row, before, "", self.key)
        signature = self.private.sign(_text(said, self.run, self.peer), _padding(), SHA256())
        return Statement(round_, row, before, base64.b64encode(signature).decode(), said.key)


def identity_of(key: bytes) -> str:
    """The libp2p identity of an RSA public key: the multihash of libp2p's protobuf of it, in base 58."""
    length, varint = len(key), b""
    while length > 127:
        varint, length = varint + bytes([length & 127 | 128]), length >> 7
    encoded = b"\x08\x00\x12" + varint + bytes([length]) + key
    number = int.from_bytes(b"\x12\x20" + hashlib.sha256(encoded).digest(), "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return digits


_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def _text(said: Statement, run: str, peer: int) -> bytes:
    return "|".join(("fedloom row 1", run, str(peer), str(said.round), said.row, said.before)).encode()


def _padding() -> PKCS1v15:
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    return PKCS1v15()  # deterministic: the same statement has one signature, also after a restart
