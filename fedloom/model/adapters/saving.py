"""A client's adapter as an ordinary PEFT adapter folder."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path

from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor

from fedloom.model.adapters.folding import with_factors
from fedloom.model.adapters.products import DOWN, UP
from fedloom.model.adapters.prompts import as_saved
from fedloom.model.adapters.ranks import check_ranks, rank_factor, truncated
from fedloom.model.adapters.square import as_lora
from fedloom.model.bank import Row


def save_adapter(
    own: PeftConfig, row: Mapping[str, Tensor], folder: Path, rank: int | None, base: Row | None
) -> None:
    """Write the folder; see `StackedModel.save` for the arguments after the adapter's own configuration."""
    row = as_lora(row)
    if own_change := {name: t for name, t in row.items() if name.endswith((UP, DOWN))}:  # a peer's residual
        base, row = own_change, {name: t for name, t in row.items() if name not in own_change}
    config = copy(own)
    config.inference_mode = True
    if rank is not None:
        check_ranks(config, [rank])
        config.r, row = rank, truncated(row, rank)
    if base:
        if rank is not None:  # the base's change has the adapter's own scale, not the client's
            factor = rank_factor(own, rank)
            base = {name: t if name.endswith(DOWN) else t / factor for name, t in base.items()}
        before = config.r
        row, more = with_factors(dict(row), base)
        config.r = before + more
        # PEFT's scale is that of the higher rank.
        factor = rank_factor(config, before)
        row = {name: t * factor if name.endswith(".lora_B.weight") else t for name, t in row.items()}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {name: t.detach().cpu().contiguous() for name, t in as_saved(row).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
