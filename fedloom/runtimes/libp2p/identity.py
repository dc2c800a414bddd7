"""A peer's key, which is its identity: whoever has the file can speak as this peer."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from fedloom.errors import UserError


def make_identity(path: Path) -> str:
    """Make a key, readable for its owner alone, unless there is one; return its peer id.

    Raises:
        UserError: The file cannot be written, or holds something else.
    """
    p2p = _hivemind().P2P
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # In a folder that nobody else can read until the file's own mode is set.
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                made = Path(folder) / "key"
                p2p.generate_identity(str(made))
                made.chmod(0o600)
                os.link(made, path)  # unlike a rename, it never replaces a key
        except OSError as error:
            raise UserError(f"{path}: the key cannot be written ({error.strerror})") from None
    return read_identity(path)


def read_identity(path: Path) -> str:
    """The peer id of a key file.

    Raises:
        UserError: There is no such file, others than its owner may read it, or it holds no key.
    """
    content = read_key(path)
    try:
        return str(_hivemind().PeerID.from_identity(content))
    except UserError:
        raise
    except Exception:  # the parsers of protobuf and of the key have errors of their own
        raise UserError(
            f"identity: {path} holds no key; make one with `fedloom identity` under another name"
        ) from None


def read_key(path: Path) -> bytes:
    """What a key file holds; hivemind, which loads torch, is not needed.

    Raises:
        UserError: There is no such file, or others than its owner may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise UserError(
                f"identity: others may read or change {path} (its mode is {mode:03o}), and whoever has the "
                f"key can speak as this peer; `chmod 600 {path}`, or make another if somebody has had it"
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"identity: cannot read {path} ({error.strerror}); make a key with `fedloom identity {path}`"
        ) from None


def _hivemind() -> Any:
    try:
        import hivemind.p2p
    except ImportError as error:
        raise UserError(f"peers over libp2p need hivemind ({error}); pip install 'fedloom[p2p]'") from None
    return hivemind.p2p
