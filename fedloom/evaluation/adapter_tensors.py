"""The tensors of a saved adapter, and whether they belong to a model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedloom.errors import UserError
from fedloom.model.bank import Row
from fedloom.runs.reading import verify

TENSORS_FILE = "adapter_model.safetensors"


def read_fitting(folder: Path, expected: Row, model: nn.Module) -> Row:
    """An adapter's tensors, which must be those of an adapter that belongs to the model.

    Args:
        folder: The adapter's.
        expected: An adapter that belongs to the model.
        model: The base, with or without weights, and with stacked adapters in it or not.

    Raises:
        UserError: They cannot be read, or do not belong to it.
    """
    row = without_copies(read_row(folder), expected, model, folder)
    check_row(row, expected, folder)
    return row


def read_row(folder: Path) -> Row:
    """An adapter's tensors, at least float32.

    Raises:
        UserError: They cannot be read.
    """
    path = folder / TENSORS_FILE
    verify(path)
    try:
        tensors = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); save the adapter again with PEFT") from None
    return {name: t.to(torch.promote_types(t.dtype, torch.float32)) for name, t in tensors.items()}


def without_copies(row: Row, expected: Row, model: nn.Module, folder: Path) -> Row:
    """A row without the weights of the base that PEFT saves beside an adapted head or a resized vocabulary.

    Args:
        row: The adapter.
        expected: One that belongs to the model.
        model: The base, with or without weights, and with stacked adapters in it or not.
        folder: Where the adapter lies, for the message.

    Raises:
        UserError: Such weights are others than the model's: then they belong to the adapter's function.
    """
    kept = {}
    for name, saved in row.items():
        base = None if name in expected else _of_the_base(name, model)
        if base is None:
            kept[name] = saved
        elif base.is_floating_point() and not _same_weights(saved, base):
            raise UserError(
                f"{folder}: the adapter brings weights of its own for "
                f"{name.removeprefix('base_model.model.')}, {list(saved.shape)} where the model has "
                f"{list(base.shape)}: its vocabulary was resized, or its embedding trained. fedloom does not "
                "run that; merge the adapter into its model with PEFT"
            )
    return kept


def check_row(row: Row, expected: Row, folder: Path) -> None:
    """Make sure that an adapter belongs to a model.

    Args:
        row: The adapter.
        expected: An adapter that does.
        folder: Where the adapter lies, for the message.

    Raises:
        UserError: Names or shapes differ; names the first.
    """
    for name in sorted(row.keys() | expected.keys()):
        was, wanted = (tuple(t[name].shape) if name in t else None for t in (row, expected))
        if was != wanted:
            raise UserError(
                f"{folder}: the adapter does not fit the model: {name} is {was or 'missing'} in the adapter, "
                f"and {wanted or 'nowhere'} in the model; give the --model_name that it was trained on"
            )


def _same_weights(saved: Tensor, base: Tensor) -> bool:
    """Whether two are the same but for the precision in which one of them was kept."""
    if base.is_meta or saved.shape != base.shape:
        return saved.shape == base.shape
    return any(
        torch.equal(saved.to(base.device, dtype), base.to(dtype))
        for dtype in (base.dtype, torch.bfloat16, torch.float16)
    )


def _of_the_base(name: str, model: nn.Module) -> Tensor | None:
    """The tensor of the frozen base that a name in an adapter's file means, where it means one."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    path = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    parent, _, leaf = path.rpartition(".")
    for there in (path, f"{parent}.base.{leaf}"):  # a stacked layer holds the frozen one as `base`
        if there in parameters:
            return parameters[there].detach()
    return None
