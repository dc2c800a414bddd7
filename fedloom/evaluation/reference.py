"""What the frozen base thinks of preferences, computed once for each: what DPO holds a model to."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from fedloom.client.steps import passes
from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel
from fedloom.options.parsing import RUN_CONFIG, RUN_RECORD
from fedloom.runs.files import write_atomically
from fedloom.runs.inputs import digest_of_tokens
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runs.run_folder import INPUTS
from fedloom.runtimes.group import ALONE, Group

log = logging.getLogger(__name__)

_PER_BATCH = 4
# Without a graph to keep, a pass holds one layer's activations: it may be larger than in training.
_PASS_FACTOR = 4


REFERENCES_FILE = "references.json"
_OF_THE_BASE = ("dtype", "quantize", "model_name", "model_checkpoint")


class Kept(NamedTuple):
    """Where a run keeps what its base thinks of preferences, so that a resumed run need not ask it again.

    Attributes:
        path: The file: the base, and by the digest of each preference its log-ratio.
        base: A digest of the base's files, and of how it runs.
    """

    path: Path
    base: str

    def read(self) -> dict[str, float]:
        """What is known by this base; a file that is of another, or damaged, is as good as none."""
        try:
            content = read_mapping(self.path)
        except Damaged as error:
            log.warning("%s; what it held is computed again", error)
            return {}
        found = content.get("log_ratios") if content.get("base") == self.base else None
        known = found if isinstance(found, dict) else {}
        return {digest: ratio for digest, ratio in known.items() if isinstance(ratio, float)}

    def write(self, ratios: dict[str, float]) -> None:
        """Replace the file."""
        content = json.dumps({"base": self.base, "log_ratios": ratios}, indent=0)
        write_atomically(self.path, content + "\n", then="resume the run")


def kept_in(folder: Path) -> Kept | None:
    """Where a run keeps its references; None where its config.yaml does not say which base it has."""
    config = read_mapping(folder / RUN_CONFIG)
    record = config.get(RUN_RECORD)
    inputs = record.get(INPUTS) if isinstance(record, dict) else None
    if not isinstance(inputs, dict) or "base weights" not in inputs:
        return None
    base = [inputs.get("settings of the base"), inputs["base weights"], *map(config.get, _OF_THE_BASE)]
    return Kept(folder / REFERENCES_FILE, hashlib.sha256(json.dumps(base).encode()).hexdigest()[:32])


def with_references(
    model: StackedModel,
    lists: Sequence[Sequence[Tokens]],
    wave_tokens: int,
    group: Group = ALONE,
    kept: Kept | None = None,
) -> list[list[Tokens]]:
    """Sequences whose preferences know the base's log π_ref(y_w|x) − log π_ref(y_l|x), in nats.

    The base runs as it was loaded: no adapter, no virtual tokens, no dropout. What is there already, and what
    is no preference, stays.

    Args:
        model: The base, in which nothing is folded.
        lists: Lists of sequences; one that stands there several times is looked at once.
        wave_tokens: Tokens per pass in training.
        group: Processes that have the same lists; each computes a share.
        kept: Where those are that an earlier start of the run has computed, and where these go.
    """
    distinct = {id(sequences): sequences for sequences in lists}
    unknown = [
        (key, place)
        for key, sequences in distinct.items()
        for place, tokens in enumerate(sequences)
        if tokens.rejected is not None and tokens.reference is None
    ]
    filled = {key: list(sequences) for key, sequences in distinct.items()}
    before: dict[str, float] = {}
    if unknown:
        before = group.share(kept.read() if kept is not None and group.rank == 0 else {})
        for key, place in unknown:
            if (ratio := before.get(_digest(filled[key][place]))) is not None:
                filled[key][place] = filled[key][place]._replace(reference=ratio)
        unknown = [(key, place) for key, place in unknown if filled[key][place].reference is None]
    if unknown:
        log.info("reference of DPO: log-probabilities of %d preferences under the base", len(unknown))
        # Sequences of like length side by side: fewer pads, where there are pads.
        unknown.sort(key=lambda at: max(len(side.ids) for side in distinct[at[0]][at[1]].sides))
        ratios = torch.zeros(len(unknown), dtype=torch.float64)
        share = slice(group.rank, None, group.size)
        ratios[share] = _ratios(model, [distinct[key][place] for key, place in unknown[share]], wave_tokens)
        summed = group.sum({"ratios": ratios})["ratios"].tolist()
        for (key, place), ratio in zip(unknown, summed, strict=True):
            filled[key][place] = filled[key][place]._replace(reference=ratio)
        if kept is not None and group.rank == 0:
            new = (filled[key][place] for key, place in unknown)
            kept.write(before | {_digest(tokens): tokens.reference or 0.0 for tokens in new})
    return [filled[id(sequences)] for sequences in lists]


def _digest(preference: Tokens) -> str:
    return digest_of_tokens([[preference]]).rpartition(" ")[2]


@torch.no_grad()
def _ratios(model: StackedModel, preferences: Sequence[Tokens], wave_tokens: int) -> torch.Tensor:
    layout = replace(model.layout, virtual=0)
    # Against a reference of 0 a margin is the base's own ratio.
    plain = [tokens._replace(reference=0.0) for tokens in preferences]
    batches = [Batch(plain[i : i + _PER_BATCH], 1.0) for i in range(0, len(plain), _PER_BATCH)]
    found = [torch.zeros(0, dtype=torch.float64)]
    for _, clients in passes([batches], layout, _PASS_FACTOR * wave_tokens):
        margins = model.losses({}, build_pack(clients, layout)).margins
        assert margins is not None, "preferences have margins"
        found.append(margins.cpu().double())
    return torch.cat(found)
