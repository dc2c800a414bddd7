"""Which parameters of an adapter are shared; the others are personal: trained, and kept by the client they
belong to.

Every file beside this one is one choice, a function of the adapter's names: ``names -> those that are
shared``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

Sharing = Callable[[Collection[str]], frozenset[str]]
