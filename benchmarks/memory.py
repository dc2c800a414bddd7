"""Peak resident memory of a round with few and with many clients in waves of the same size."""

from __future__ import annotations

import time
from typing import Any

from contenders import Fedloom
from machine import forget_peak, peak_resident_bytes
from stage import Stage
from workload import LEARNING_RATE

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import adam, sgd
from fedloom.client.steps import batch_tokens
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.server import federated_round, initial_state
from fedloom.runtimes.in_process import run_clients


class Memory:
    """One round of FedAdam, measured once in a process of its own."""

    def __init__(self, stage: Stage):
        self.fedloom = Fedloom(stage)

    def describe(self) -> dict[str, Any]:
        """The machine, the model and the data."""
        return self.fedloom.describe()

    def run(self, dtype: str, clients: int, wave_clients: int) -> dict[str, Any]:
        """Train the first ``clients`` clients, as many at once as the first ``wave_clients`` have tokens.

        Returns:
            Peaks in bytes: of the process since its start, and since training began, the model included
            (None where the system does not tell).
        """
        model, start, _ = self.fedloom.stacked(dtype)
        wave_tokens = sum(
            batch_tokens(batch, model.layout)
            for client in range(wave_clients)
            for step in self.fedloom.work(client, model.layout).steps
            for batch in step
        )
        rules = LocalRules(sgd(LEARNING_RATE), wave_tokens=wave_tokens)
        algorithm = Algorithm(LEARNING_RATE, adam(1e-3))
        loading = peak_resident_bytes()
        apart = forget_peak()
        began = time.perf_counter()
        _, report = federated_round(
            initial_state(start, algorithm),
            range(clients),
            lambda round_, chosen, row, frozen, rule: run_clients(
                model, row, (self.fedloom.work(client, model.layout) for client in chosen), rules, algorithm
            ),
            algorithm,
        )
        seconds, training = time.perf_counter() - began, peak_resident_bytes()
        return {
            "clients": clients,
            "wave_tokens": wave_tokens,
            "tokens": sum(update.tokens for update in report.updates),
            "seconds": seconds,
            "peak_bytes": None if training is None or loading is None else max(loading, training),
            "training_peak_bytes": training if apart else None,
        }
