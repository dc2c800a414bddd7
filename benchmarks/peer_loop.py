"""Peers one after another with PEFT: what `benchmarks/peers.py` compares with."""

from __future__ import annotations

import copy
import time
import warnings

import torch
from peft import get_peft_model

from fedloom.data.draws import draw_batches
from fedloom.model.base import load_base
from fedloom.training.graph_parts import PeerParts


class PeerLoop:
    """One PEFT model for all peers; each has its own adapter and its own Adam."""

    def __init__(self, model: str, parts: PeerParts, dtype: str, device: str):
        """Load the model a second time and draw the batches that fedloom's peers will draw."""
        base = load_base(model, device=device, dtype=dtype, num_labels=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model = get_peft_model(base.model, copy.deepcopy(parts.model.config))
        self.device = base.device
        self.pad = base.tokenizer.pad_token_id
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.trained]
        self.batches = [
            [
                self._padded([parts.train[i] for i in batch])
                for batch in draw_batches(
                    own,
                    seed=parts.seed,
                    client=peer,
                    start=0,
                    count=schedule.batches,
                    batch_size=schedule.batch_size,
                )
            ]
            for peer, (own, schedule) in enumerate(zip(parts.peers, parts.schedules, strict=True))
        ]

    def _padded(self, sequences: list) -> dict[str, torch.Tensor]:
        """A batch as tensors, padded to its longest sequence."""
        longest = max(len(s.ids) for s in sequences)
        rows = [s.ids + [self.pad] * (longest - len(s.ids)) for s in sequences]
        mask = [[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences]
        labels = [s.label for s in sequences]
        found = {"input_ids": rows, "attention_mask": mask, "labels": labels}
        return {name: torch.tensor(value, device=self.device) for name, value in found.items()}

    def seconds_of_round(self) -> float:
        """Every peer from the common start through its batches; returns wall clock time."""
        began = time.perf_counter()
        self._round(training=True)
        return time.perf_counter() - began

    def losses_without_dropout(self) -> list[float]:
        """Each peer's mean training loss with dropout off."""
        return self._round(training=False)

    def _round(self, training: bool) -> list[float]:
        self.model.train(training)
        means = []
        for batches in self.batches:
            with torch.no_grad():
                for p, value in zip(self.trained, self.start, strict=True):
                    p.copy_(value)
            optimiser = torch.optim.Adam(self.trained, lr=1e-3)
            losses = []
            for batch in batches:
                loss = self.model(**batch).loss
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            means.append(sum(losses) / len(losses))
        return means
