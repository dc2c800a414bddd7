"""Which of LoRA's factors train in which round; every file beside this one is one schedule.

A schedule is a function of the adapter's names and the round: ``(names, round) -> those that train``, rounds
from 0. What rests keeps its value, at the client and at the server, with its moments; what is no factor of
LoRA, such as a head, always trains. With a server only what trains is sent. On a graph peers average what
rests too: they may have moved it apart in the rounds before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

TrainFactors = Callable[[Collection[str], int], frozenset[str]]
