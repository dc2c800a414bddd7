"""Secure aggregation: masks that cancel in the sum, so that the server learns the sum and nothing else.

    Bonawitz et al., 2017, doi:10.1145/3133956.3133982, protocol of figure 4 for a server that is curious but
    follows it; every client is everybody's neighbour

    keys     k → server:  two public keys, c_k to encrypt with and s_k to mask with
    shares   k → j:       Shamir shares of a seed b_k and of the secret key of s_k, encrypted for j
    masked   k → server:  x_k + PRG(b_k) + Σ_{j > k} PRG(s_kj) − Σ_{j < k} PRG(s_kj)       mod 2³²
    reveal   k → server:  its shares of b_j for those that sent x_j; of the secret key for those that did not

With any threshold of shares the server removes the masks of b_k of those that are in the sum, and what is
left of those that fell out. It never gets both for one client: each refuses that. A server that colludes with
fewer clients than the threshold learns the sum of the others alone.

Shamir's sharing and the encryption (Fernet) are those that Flower keeps for its own SecAgg+, key agreement is
X25519 with HKDF, and the masks are ChaCha20's key stream. (Flower's own generator folds a seed to 32 bits,
which can be tried through.)
"""

from __future__ import annotations

import base64
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt

from fedloom.model.bank import Row
from fedloom.runtimes.flower.rows import Unfit

_KEY = 32
"""Bytes of a key, and of a seed."""


def threshold_of(clients: int) -> int:
    """How many clients must be there at the end: more than half, so that no two halves know a secret."""
    return clients // 2 + 1


@dataclass(frozen=True)
class Keys:
    """A client's two pairs of keys, of one round."""

    encrypt: bytes
    mask: bytes

    @classmethod
    def new(cls) -> Keys:
        """Fresh ones."""
        return cls(*(X25519PrivateKey.generate().private_bytes_raw() for _ in range(2)))

    def public(self) -> list[str]:
        """What everybody may know: the keys to encrypt for this client, and to mask with it."""
        return [
            X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()
            for secret in (self.encrypt, self.mask)
        ]


def begin() -> tuple[dict[str, Any], dict[str, Any]]:
    """A client's first step: what it keeps, and what it sends."""
    keys = Keys.new()
    kept = {"encrypt": keys.encrypt.hex(), "mask": keys.mask.hex()}
    return kept, {"public": keys.public()}


def share(
    kept: Mapping[str, Any], client: int, public: Mapping[str, Sequence[str]], fewest: int = 3
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A client's second step: shares of its secrets for all others.

    Args:
        kept: What `begin` let it keep.
        client: Its number.
        public: By client number, the public keys of all that take part.
        fewest: As many must take part.

    Returns:
        What it keeps, and what it sends: ``{number: sealed}``.

    Raises:
        Unfit: The list is not one of this client's round, or keys stand in it twice.
    """
    keys = Keys(bytes.fromhex(kept["encrypt"]), bytes.fromhex(kept["mask"]))
    listed = [key for pair in public.values() for key in pair]
    if list(public.get(str(client), ())) != keys.public() or len(set(listed)) < len(listed):
        raise Unfit("the list of public keys is not one of this round")
    if len(public) < fewest:
        raise Unfit(f"{len(public)} clients are too few: the sum would tell of each")
    everybody, seed = sorted(public, key=int), os.urandom(_KEY)
    threshold = threshold_of(len(everybody))
    of_seed, of_key = (create_shares(secret, threshold, len(everybody)) for secret in (seed, keys.mask))
    sealed, kept_share = {}, ""
    for place, other in enumerate(everybody):
        plain = f"{client} {other} {of_seed[place].hex()} {of_key[place].hex()}"
        if other == str(client):
            kept_share = plain
        else:
            shared = _agreed(keys.encrypt, public[other][0], b"shares")
            sealed[other] = encrypt(base64.urlsafe_b64encode(shared), plain.encode()).decode()
    return {**kept, "seed": seed.hex(), "public": dict(public), "own": kept_share}, {"sealed": sealed}


def masked(kept: Mapping[str, Any], client: int, payload: Row, others: Collection[str]) -> Row:
    """A client's third step: what it sends in place of its whole numbers.

    Args:
        kept: What `share` let it keep.
        client: Its number.
        payload: Its whole numbers.
        others: Those whose shares reached it, as numbers in words; all must be there that took part.

    Raises:
        Unfit: So few are there that their sum would not be learned.
    """
    if len(others) + 1 < threshold_of(len(kept["public"])):
        raise Unfit(f"{len(others) + 1} clients have shared their secrets, and more are needed")
    total = {name: t.clone() for name, t in payload.items()}
    _add(total, bytes.fromhex(kept["seed"]), 1)
    secret = bytes.fromhex(kept["mask"])
    for other in others:
        _add(total, _agreed(secret, kept["public"][other][1], b"mask"), 1 if client < int(other) else -1)
    return total


def reveal(
    kept: Mapping[str, Any],
    client: int,
    sealed: Mapping[str, str],
    there: Collection[str],
    gone: Collection[str],
) -> dict[str, Any]:
    """A client's last step: shares, by which the server takes the masks off the sum.

    Args:
        kept: What `share` let it keep.
        client: Its number.
        sealed: What the others had sealed for it, by number.
        there: Those whose masked numbers are in the sum.
        gone: Those that shared and did not send any.

    Raises:
        Unfit: The server asks for both secrets of one client, for too few, or shares are not what they say.
    """
    if set(there) & set(gone) or str(client) not in there:
        raise Unfit("the server asks for what would unmask a single client")
    if len(set(there)) < min(len(kept["public"]), max(2, threshold_of(len(kept["public"])))):
        raise Unfit(f"the sum of {len(set(there))} clients is not unmasked")
    found = {}
    for other in (*there, *gone):
        if other == str(client):
            plain = kept["own"]
        else:
            try:
                shared = _agreed(bytes.fromhex(kept["encrypt"]), kept["public"][other][0], b"shares")
                plain = decrypt(base64.urlsafe_b64encode(shared), sealed[other].encode()).decode()
            except (InvalidToken, ValueError, KeyError):
                raise Unfit(f"the share of client {int(other) + 1} cannot be opened") from None
        source, receiver, of_seed, of_key = [*plain.split(" "), "", "", ""][:4]
        if (source, receiver) != (other, str(client)):
            raise Unfit(f"the share of client {int(other) + 1} is another's")
        found[other] = of_seed if other in there else of_key
    return {"shares": found}


def unmasked(
    total: Row,
    public: Mapping[str, Sequence[str]],
    there: Sequence[str],
    gone: Sequence[str],
    shares: Sequence[Mapping[str, str]],
) -> Row:
    """The server's last step: the sum without masks.

    Args:
        total: The sum of what is masked.
        public: As in `share`.
        there: Those whose masked numbers are in the sum.
        gone: Those that shared and did not send any.
        shares: What clients revealed, at least `threshold_of` of them.

    Raises:
        Unfit: The shares give no secret: somebody revealed something else.
    """
    total = {name: t.clone() for name, t in total.items()}
    threshold = threshold_of(len(public))
    for client in (*there, *gone):
        known = [bytes.fromhex(own[client]) for own in shares if client in own][:threshold]
        if len(known) < threshold:
            raise Unfit(f"{len(known)} shares of client {client}'s secret came, and {threshold} are needed")
        try:
            secret = combine_shares(known)
        except ValueError as error:
            raise Unfit(f"the shares of client {client}'s secret do not fit ({error})") from None
        if client in there:
            _add(total, secret, -1)
            continue
        for other in there:  # what this one's absence has left of the masks of those who are there
            sign = 1 if int(other) < int(client) else -1
            _add(total, _agreed(secret, public[other][1], b"mask"), -sign)
    return total


def _agreed(secret: bytes, public: str, purpose: bytes) -> bytes:
    """What the owner of a secret key and that of a public one both know, and nobody else."""
    key = X25519PrivateKey.from_private_bytes(secret)
    shared = key.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    return HKDF(algorithm=hashes.SHA256(), length=_KEY, salt=None, info=purpose).derive(shared)


def _add(total: Row, seed: bytes, sign: int) -> None:
    """Add a mask to whole numbers, or take it off, in place."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    for _, t in sorted(total.items()):
        noise = stream.update(bytes(t.numel() * t.element_size()))
        drawn = np.frombuffer(noise, dtype=f"<i{t.element_size()}")
        t += sign * torch.from_numpy(drawn.copy()).view_as(t)
