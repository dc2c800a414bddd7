"""A transformer's trunk and head, which differ by architecture: found by watching one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as TrunkOutput


@dataclass(frozen=True)
class Anatomy:
    """What a model's own forward pass calls.

    Attributes:
        trunk: The outermost module that holds all layers and that the model calls, from ids to hidden states.
        core: The innermost one that it calls once; what stands behind it in the trunk (a pooler) belongs to
            the head. Often the trunk itself.
        bare: Whether the core returns its hidden states as a tensor, with nothing around it.
        behind: Names of the modules that are called only after the core.
    """

    trunk: nn.Module
    core: nn.Module
    bare: bool
    behind: frozenset[str]


@torch.no_grad()
def find_anatomy(model: PreTrainedModel, layers_name: str, ids: Tensor) -> Anatomy | None:
    """Watch which modules a forward pass calls, and when.

    Args:
        model: In eval mode.
        layers_name: The dotted name of the list of its layers.
        ids: Token ids that it can read, ``[rows, columns]``.

    Returns:
        What was seen; None where no one module leads from token ids to hidden states.
    """
    calls: list[tuple[str, bool]] = []
    outputs: dict[str, Any] = {}

    def enter(name: str) -> None:
        calls.append((name, True))

    def leave(name: str, output: Any) -> None:
        calls.append((name, False))
        outputs[name] = output

    def watch(name: str, module: nn.Module) -> list[Any]:
        return [
            module.register_forward_pre_hook(lambda m, args: enter(name)),
            module.register_forward_hook(lambda m, args, out: leave(name, out)),
        ]

    hooks = [hook for name, module in model.named_modules() if name for hook in watch(name, module)]
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    parts = layers_name.split(".")
    holders = [".".join(parts[:n]) for n in range(1, len(parts))]
    called = [name for name in holders if calls.count((name, True)) == 1]
    once = [name for name in called if _is_states(outputs[name], ids)]
    if not called or called[0] not in once:
        return None
    end = calls.index((once[-1], False))
    before, after = ({name for name, _ in some} for some in (calls[:end], calls[end + 1 :]))
    return Anatomy(
        trunk=model.get_submodule(called[0]),
        core=model.get_submodule(once[-1]),
        bare=isinstance(outputs[once[-1]], Tensor),
        behind=frozenset(after - before)
        | {name for name in before if name.startswith(f"{once[-1]}.pooler.")},
    )


def states_of(output: Any) -> Tensor:
    """The hidden states in whatever a trunk returns, ``[rows, columns, width]``."""
    if isinstance(output, Tensor):
        return output
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]


def _is_states(output: Any, ids: Tensor) -> bool:
    try:
        states = states_of(output)
    except (TypeError, KeyError, IndexError):
        return False
    return isinstance(states, Tensor) and states.dim() == 3 and states.shape[:2] == ids.shape


class _Answer(TrunkOutput):
    """Hidden states as a trunk returns them; of what else a head may ask for there is none."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def answering(anatomy: Anatomy, states: Tensor) -> Iterator[None]:
    """Let the core return ``states`` without computing anything but its own pooler, if it has one."""
    core = anatomy.core
    pooler = getattr(core, "pooler", None)
    answer = _Answer(last_hidden_state=states, pooler_output=pooler(states) if pooler else None)
    if answer.pooler_output is None:
        answer.hidden_states = (states,)  # DeBERTa takes the last of all layers' states
    core.forward = lambda *args, **kwargs: states if anatomy.bare else answer
    try:
        yield
    finally:
        del core.forward


@contextmanager
def listening(core: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the hidden states that ``core`` returns."""
    heard: list[Tensor] = []
    hook = core.register_forward_hook(lambda module, args, out: heard.append(states_of(out)))
    try:
        yield heard
    finally:
        hook.remove()


def position_offset(trunk: nn.Module) -> int:
    """RoBERTa counts positions from its padding index + 1; everybody else from 0."""
    for name, module in trunk.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def keep_backward(model: PreTrainedModel) -> None:
    """Keep away from kernels that have no backward, or none for the model's dtype.

    bitsandbytes' CPU layers would repack their weights for one; torch's grouped product of experts knows no
    float64.
    """
    for module in model.modules():
        if model.dtype == torch.float64 and getattr(module, "config", None) is not None:
            module.config._experts_implementation = "eager"
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
