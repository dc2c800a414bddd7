"""What server and clients send each other: plain data as JSON, tensors as safetensors. Nothing is pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Content:
    """One message's content, or what a client keeps between two.

    Attributes:
        facts: Plain data, as JSON keeps it.
        tensors: A safetensors file; empty where there are none.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: bytes = b""
