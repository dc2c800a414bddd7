"""A signed app, for SuperNodes that run what its owner has signed and nothing else.

A SuperNode that was started with ``--trusted-entities`` checks by itself that an app is signed with a key
that it knows, whatever the SuperLink says. Flower gives signatures to a SuperLink only together with an app
that it fetches from a hub. The folder written here has all that such a hub answers, so that any web server on
the SuperLink's machine can be one:

    app.fab                  the app
    fetch-fab.json           where it is, and who has signed it, as Flower's hub says it
    trusted-entities.yaml    for the SuperNodes: the public key
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from fedloom.errors import UserError

SIGNED_FOLDER = "signed"


def read_signing_key(path: Path) -> Any:
    """The private key of a file, as ``ssh-keygen -t ed25519`` writes it without a passphrase.

    Raises:
        UserError: It cannot be read, others can read it too, or it is of another kind.
    """
    make = f"make one with ssh-keygen -t ed25519 -N '' -f {path.name}"
    try:
        from flwr.supercore.primitives.asymmetric_ed25519 import load_private_key
    except ImportError as error:
        raise UserError(
            f"signing_key: to sign an app needs flwr ({error}); pip install 'fedloom[flower]'"
        ) from None
    try:
        mode, key = path.stat().st_mode, load_private_key(path)
    except OSError as error:
        raise UserError(f"signing_key: cannot read {path} ({error.strerror}); {make}") from None
    except Exception:  # the parsers of keys have errors of their own
        raise UserError(f"signing_key: {path} is no Ed25519 key without a passphrase; {make}") from None
    if mode & 0o077:
        raise UserError(f"signing_key: others can read {path}; chmod 600 {path}")
    return key


def sign_app(app: Path, key: Any, hub: str) -> Path:
    """Write the signed app into the app's folder.

    Args:
        app: The folder, as `flwr run` takes it.
        key: As `read_signing_key` returned it.
        hub: Where the web server is reached from the SuperLink's machine.

    Returns:
        The folder that the web server gives out.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from flwr.cli.build import build_fab_from_disk
    from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, sign_message

    fab, now = build_fab_from_disk(app), int(time.time())
    signature = sign_message(key, create_message_to_sign(hashlib.sha256(fab).digest(), now))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    name = f"fpk_{hashlib.sha256(public.encode()).hexdigest()[:16]}"
    verification = {
        "public_key_id": name,
        "signature": base64.urlsafe_b64encode(signature).decode().rstrip("="),
        "signed_at": now,
    }
    folder = app / SIGNED_FOLDER
    folder.mkdir()
    (folder / "app.fab").write_bytes(fab)
    answer = {"fab_url": f"{hub.rstrip('/')}/hub/app.fab", "verifications": [verification]}
    (folder / "fetch-fab.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    (folder / "trusted-entities.yaml").write_text(f"{name}: {public}\n", encoding="utf-8")
    return folder
