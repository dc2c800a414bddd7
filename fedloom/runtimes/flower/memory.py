"""What a client remembers from round to round, on its own disk: it survives the process, the SuperNode and
the machine.

    STATE/EXP_NAME/client-0003/WORD.safetensors     after the answer of this word
    STATE/EXP_NAME/client-0003/adapter/             where it has personal parameters: its own adapter, for
    PEFT

STATE is `state-path` of the node config, else the folder fedloom in Flower's own (FLWR_HOME). A version is
kept for every round since the server's last checkpoint, so that a server that is resumed finds clients as
they were then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom.model.bank import Row
from fedloom.runs.files import remove, replace_tensors, writing
from fedloom.runs.reading import read_tensors

_WORD = re.compile(r"[0-9a-f]{1,32}-([0-9]{1,12})")


class Memory:
    """The versions of one client.

    Attributes:
        folder: Where they lie.
    """

    def __init__(self, node: Mapping[str, Any], exp_name: str, client: int) -> None:
        flower = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
        state = Path(str(node.get("state-path", flower / "fedloom")))
        self.folder = state / exp_name / f"client-{client + 1:04d}"
        with writing(self.folder, then="or give the SuperNode another state-path in its node config"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def recall(self, word: object, first: Row) -> Row | None:
        """What the client remembered after the answer of a word; None where it no longer does, or never has.

        Args:
            word: The server's for the answer; None where it has taken none.
            first: Names, shapes and dtypes that it has.

        Raises:
            Damaged: The file is not as it was written.
        """
        if not isinstance(word, str) or not _WORD.fullmatch(word):
            return None
        path = self.folder / f"{word}.safetensors"
        if not path.exists():
            return None
        device = next(iter(first.values())).device
        row = {name: t.to(device) for name, t in read_tensors(path).items()}
        fits = row.keys() == first.keys() and all(t.shape == first[name].shape for name, t in row.items())
        return row if fits else None

    def keep(self, word: str, memory: Row, kept_from: int, remembers: str | None) -> None:
        """Keep a version, and drop those that no resumed server can ask for.

        Args:
            word: Of the answer that it goes with.
            memory: What the client remembers.
            kept_from: Rounds done at the server's last checkpoint.
            remembers: The word of the version that this one came of.
        """
        if not _WORD.fullmatch(word):
            raise ValueError(f"no word of a round: {word!r}")
        replace_tensors(self.folder / f"{word}.safetensors", memory)
        versions = {
            path: int(match[1])
            for path in self.folder.glob("*.safetensors")
            if (match := _WORD.fullmatch(path.stem))
        }
        # The newest version from before the checkpoint is the one that counted there.
        older = sorted((round_, path) for path, round_ in versions.items() if round_ < kept_from)
        for _, path in older[:-1]:
            if path.stem not in (word, remembers):
                remove(path)
