"""A model's tensors must be numbers that it can compute with: finite, and stored as what they mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from transformers import PretrainedConfig

from fedloom.errors import UserError


def check_stored_as_floats(config: PretrainedConfig, dtypes: Mapping[str, torch.dtype], name: str) -> None:
    """Refuse weights that were quantised where nothing says how: their scales would be lost.

    Args:
        config: The model's configuration.
        dtypes: Of the tensors in the files.
        name: The model, for the message.

    Raises:
        UserError: Names the first of them.
    """
    # Masks and positions are whole numbers, too; no weight is.
    whole = sorted(
        tensor
        for tensor, dtype in dtypes.items()
        if tensor.endswith("weight") and not dtype.is_floating_point and not dtype.is_complex
    )
    if whole and getattr(config, "quantization_config", None) is None:
        kind = str(dtypes[whole[0]]).removeprefix("torch.")
        raise UserError(
            f"model {name!r}: {len(whole)} of its weights are whole numbers ({whole[0]} is {kind}), and "
            "config.json has no quantization_config that says how to read them. Fetch config.json again, or "
            "weights that are not quantised."
        )


@torch.no_grad()
def check_finite(model: nn.Module, name: str) -> None:
    """Refuse weights that hold NaN or infinity. Those that bitsandbytes has quantised no longer show it.

    Args:
        model: As it was loaded.
        name: For the message.

    Raises:
        UserError: Names the first of them.
    """
    parameters = {id(p) for p in model.parameters()}
    tensors = {n: t for n, t in model.state_dict(keep_vars=True).items() if t.is_floating_point()}
    wrong = []
    for tensor, values in tensors.items():
        total = values.sum(dtype=torch.float64)  # says it of all of them, without a copy of the tensor
        # A buffer may be a mask, and hold infinity.
        if total.isnan() or (total.isinf() and id(values) in parameters):
            wrong.append(tensor)
    if wrong:
        raise UserError(
            f"model {name!r}: {len(wrong)} of {len(tensors)} tensors hold NaN or infinity, such as "
            f"{wrong[0]}. Training that diverged leaves such files; take an earlier checkpoint, or fetch the "
            "weights again."
        )
