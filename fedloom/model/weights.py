"""What a model's files lacked: nothing may be trained on weights that nobody trained.

transformers draws at random whatever the files do not hold, and says so in a warning. Here that is an error,
but for what a new task needs and no file can hold: a classifier's head, and a pooler that only the head
reads.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fedloom.errors import UserError
from fedloom.model.layers import decoder_layers, layer_of
from fedloom.model.structure import setting
from fedloom.model.weights_advice import advice, some, what_is_wrong

log = logging.getLogger(__name__)

_MOST_LAYERS = 10_000


def check_depth(config: PretrainedConfig, held: Mapping[str, Sequence[int]], name: str) -> None:
    """Refuse a number of layers that no files could fill, before anything is built.

    Args:
        config: The model's configuration.
        held: The tensors in the files and their shapes; empty where these are not known.
        name: The model, for messages.

    Raises:
        UserError: Says how many layers there are to be.
    """
    layers = setting(config, "num_hidden_layers")
    most = len(held) or _MOST_LAYERS
    if isinstance(layers, int) and not 1 <= layers <= most:
        there = f"its files hold {most:,} tensors" if held else f"a model has 1 to {most:,}"
        raise UserError(
            f"model {name!r}: config.json counts {layers:,} layers (num_hidden_layers), but {there}. Fetch "
            "config.json and the weights again, both from one place."
        )


def check_shapes(
    structure: PreTrainedModel, held: Mapping[str, Sequence[int]], name: str, *, empty: bool
) -> None:
    """Hold the files' headers against a model.

    Args:
        structure: The model without weights.
        held: The tensors in the files and their shapes.
        name: The model, for messages.
        empty: Look at tensors of size 0 alone. Others may be turned over or joined when they are read.

    Raises:
        UserError: Tensors that the model needs have another shape.
    """
    tensors, prefix = structure.state_dict(), f"{structure.base_model_prefix}."
    wrong = {
        there: (shape, tensors[candidate].shape)
        for there, shape in held.items()
        for candidate in (there, prefix + there, there.removeprefix(prefix))
        if candidate in tensors
        and list(shape) != list(tensors[candidate].shape)
        and (0 in shape or not empty)
    }
    if wrong:
        what = what_is_wrong([], wrong, len(tensors))
        raise UserError(f"model {name!r}: {what}. {advice(structure, set(), wrong, ())}")


def check_weights(
    model: PreTrainedModel, report: Mapping[str, Any], name: str, classify: bool
) -> tuple[str, ...]:
    """Make sure that the files held every tensor, but for a classifier's head.

    Args:
        model: As transformers loaded it.
        report: What transformers says of the loading (`output_loading_info`).
        name: The model, for messages.
        classify: Whether the model is a classifier, whose head may be new.

    Returns:
        The names of the modules that were drawn at random; they must be saved with an adapter.

    Raises:
        UserError: Tensors are missing or of another shape; says how many, which, and what to do.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    lacking = {tensor for tensor in report["missing_keys"] if tensor in parameters}
    shapes = {tensor: (tuple(found), tuple(wanted)) for tensor, found, wanted in report["mismatched_keys"]}
    shapes |= _quantised_shapes(model)
    new = _drawable(model, sorted(lacking | shapes.keys())) if classify else set()
    wrong = {tensor: shape for tensor, shape in shapes.items() if tensor not in new}
    if lacking - new or wrong:
        raise UserError(
            f"model {name!r}: {what_is_wrong(sorted(lacking - new), wrong, len(parameters))}. "
            f"{advice(model, lacking - new, wrong, report['unexpected_keys'])}"
        )
    _check_unused(model, report["unexpected_keys"], name)
    drawn = _drawn(model, sorted(new), shapes, name)
    # Buffers, and what has the same value wherever it is made, such as a norm's ones.
    at_defaults = {
        tensor for tensor in {*report["missing_keys"], *new} if tensor.rpartition(".")[0] not in drawn
    }
    if at_defaults:
        log.warning(
            "the model's files lack %s: set to what the architecture begins with", some(sorted(at_defaults))
        )
    return drawn


def _check_unused(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Whole layers that the files hold and the model does not: config.json counts too few of them.

    A further layer that predicts more tokens has parts that no other layer has, and may be left over; so may
    what stands outside the layers, such as another task's head.
    """
    layers, modules = decoder_layers(model)
    parts = {_part_of_layer(tensor, layers) for tensor, _ in model.named_parameters()}
    unused: dict[int, list[str]] = {}
    for tensor in unexpected:
        layer = layer_of(tensor, layers)
        if layer is not None:
            unused.setdefault(layer, []).append(tensor)
    further = [
        layer
        for layer, held in unused.items()
        if layer >= len(modules) and all(_part_of_layer(tensor, layers) in parts for tensor in held)
    ]
    if further:
        raise UserError(
            f"model {name!r}: its files hold {len(further)} more layers than config.json counts, such as "
            f"{unused[min(further)][0]}. Set num_hidden_layers to {max(further) + 1}, or fetch config.json "
            "again."
        )
    inside = sorted(tensor for layer, held in unused.items() if layer < len(modules) for tensor in held)
    if inside:
        log.warning(
            "the model has no use for %d tensors that its files hold in its layers (%s): config.json may be "
            "another model's",
            len(inside),
            some(inside),
        )


def _part_of_layer(tensor: str, layers: str) -> str:
    """``model.layers.7.mlp.up_proj.weight -> mlp.up_proj.weight``."""
    return tensor.partition(f"{layers}.")[2].partition(".")[2]


def _quantised_shapes(model: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Weights that bitsandbytes quantised in another shape than their layer has: no report names them."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes"):
            state = getattr(module.weight, "quant_state", None)
            held = tuple(module.weight.shape if state is None else state.shape)
            wanted = (module.out_features, module.in_features)
            if held != wanted:
                found[f"{name}.weight"] = held, wanted
    return found


def _drawn(
    model: PreTrainedModel, new: Sequence[str], shapes: Mapping[str, tuple[Any, Any]], name: str
) -> tuple[str, ...]:
    """The modules that are new. Constants, such as a norm's ones, are the same wherever they are made."""
    modules: dict[str, nn.Module] = {}
    for tensor in new:
        values = model.get_parameter(tensor)
        if values.numel() > 1 and bool((values != values.flatten()[0]).any()):
            module = tensor.rpartition(".")[0]
            modules[module] = model.get_submodule(module)
    for module, made in modules.items():
        if not isinstance(made, nn.Linear):
            raise UserError(
                f"model {name!r}: its files lack {module} ({type(made).__name__}), and only linear layers "
                "can be made anew. Choose a model whose files hold it."
            )
    resized = [tensor for tensor in new if tensor in shapes]
    if resized:
        found, wanted = shapes[resized[0]]
        log.warning(
            "the model's head is for %d classes, the task has %d: it is replaced by a new one",
            found[0],
            wanted[0],
        )
    return tuple(modules)


def _drawable(model: PreTrainedModel, tensors: Sequence[str]) -> set[str]:
    """Of some tensors those of a classifier's head: outside the trunk, or read behind its hidden states."""
    trunk = model.base_model
    prefix = next((f"{name}." for name, module in model.named_modules() if module is trunk and name), None)
    if prefix is None:
        return set()
    layers, _ = decoder_layers(model)
    outside = {tensor for tensor in tensors if not tensor.startswith(prefix)}
    return outside | {
        tensor
        for tensor in tensors
        if tensor not in outside
        and layer_of(tensor, layers) is None
        and _is_pooled(model, model.get_parameter(tensor))
    }


@torch.no_grad()
def _is_pooled(model: PreTrainedModel, tensor: Tensor) -> bool:
    """Whether the pooled output depends on a tensor and the hidden states do not: NaN shows where it goes."""
    if not tensor.is_floating_point():
        return False
    before = tensor.clone()
    tensor.fill_(torch.nan)
    try:
        for whole in (False, True):
            with (
                contextlib.suppress(Exception),
                contextlib.nullcontext() if whole else _without_layers(model),
            ):
                out = model.base_model(input_ids=torch.tensor([[1, 2, 3]], device=tensor.device))
                pooled = getattr(out, "pooler_output", None)
                hidden = out.last_hidden_state
                return pooled is not None and bool(pooled.isnan().any()) and not bool(hidden.isnan().any())
    finally:
        tensor.copy_(before)
    return False  # a trunk that cannot be tried gets no benefit of the doubt


@contextmanager
def _without_layers(model: PreTrainedModel) -> Iterator[None]:
    """Let a model go from its embeddings straight to what stands behind its layers, which cost time."""
    name, layers = decoder_layers(model)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.ModuleList())
    try:
        yield
    finally:
        setattr(model.get_submodule(parent), leaf, layers)
