"""Lengths beyond which an architecture does something else with a text.

The trial's few short texts (`fedloom.model.trial`) stand for texts of every length, as most architectures
treat all alike. What does not is here: rotations that the longest text of a pass decides, attention that
picks some of the tokens once there are many, and numbers that change only far into a text. Either the trial
is made to reach so far, or a batch with a text beyond `longest_together` runs by itself, as PEFT would run
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# Tokens or positions after which a model scales its queries. Llama 4 and Inkling count them along the row of
# a pass, whatever positions they are given: in a packed one they would count other texts' tokens, too.
_SCALED_FROM = ("floor_scale", "log_scaling_n_floor")
_NEAR = 4
_LONGEST_SUMMARY = 256


def longest_together(model: nn.Module) -> int | None:
    """Tokens of a text up to which nothing in the model depends on the longest text of a pass.

    Dynamic NTK scaling and LongRoPE (Ding et al., 2024, arXiv:2402.13753) turn all tokens of a pass by angles
    that the longest of its sequences decides, once that is longer than those of pre-training. Sparse
    attention has another such length, see `longest_dense`.

    Returns:
        The least of these lengths; None: none does.
    """
    dense = longest_dense(model)
    limits = [] if dense is None else [dense]
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if not kinds.isdisjoint({"dynamic", "longrope"}):
            limits += _original_lengths(module.config)
    return min(limits, default=None)


def longest_dense(model: nn.Module) -> int | None:
    """Tokens of a text up to which sparse attention keeps all of them; None where attention is not sparse.

    Beyond, it picks the best. Which of equally good ones top-k takes depends on how wide the row is, pads
    included; and many are equally good, as scores below 0 are set to 0 (DeepSeek-V3.2, 2025,
    arXiv:2512.02556).
    """
    return min((limit for config in _configs(model) for limit in _dense_up_to(config)), default=None)


def summarised(model: nn.Module) -> int:
    """Tokens, of those that a trial can have, of which a layer makes one summary; 0 where none does."""
    return max(
        (n for config in _configs(model) for n in _rates(config).values() if n <= _LONGEST_SUMMARY), default=0
    )


def watch_top_k(run: Callable[[], Tensor]) -> tuple[Tensor, bool]:
    """What ``run`` gives, and whether the model picks some of a text's tokens by top-k.

    Args:
        run: Runs two texts of different lengths one after the other. What a router picks among, experts, are
            as many for both; tokens, or summaries of them, are not.
    """
    with _WatchTopK() as watch:
        found = run()
    half, odd = divmod(len(watch.widths), 2)
    return found, bool(odd) or watch.widths[:half] != watch.widths[half:]


class _WatchTopK(TorchFunctionMode):
    """Notes among how many each call of top-k picks."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.topk, Tensor.topk):
            dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
            self.widths.append(args[0].shape[dim])
        return function(*args, **kwargs)


@contextmanager
def scaled_early(model: nn.Module) -> Iterator[None]:
    """Let what a model scales far into a text be scaled from its first tokens on, for a trial to see it."""
    before = [
        (holder, name, vars(holder)[name])
        for holder in (*model.modules(), *_configs(model))
        for name in _SCALED_FROM
        if isinstance(vars(holder).get(name), int | float)
    ]
    for holder, name, value in before:
        setattr(holder, name, min(value, _NEAR))
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def forget_lengths(rotaries: Iterable[nn.Module]) -> None:
    """Let rotary embeddings forget the longest sequence of earlier passes, as dynamic NTK does not."""
    for module in rotaries:
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            if getattr(module, name) != module.original_max_seq_len:
                prefix = name.removesuffix("max_seq_len_cached")
                device = getattr(module, f"{prefix}inv_freq").device
                before = getattr(module, f"{prefix}original_inv_freq").to(device)
                module.register_buffer(f"{prefix}inv_freq", before, persistent=False)
                setattr(module, name, module.original_max_seq_len)


def _configs(model: nn.Module) -> list[Any]:
    """The configurations that a model's modules look at, each once."""
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    return list(found.values())


def _dense_up_to(config: Any) -> Iterator[int]:
    def number(name: str) -> int | None:
        value = getattr(config, name, None)
        return value if isinstance(value, int) and value > 0 else None

    rates = _rates(config)
    # DeepSeek-V4 picks among summaries, in one of its kinds of layers.
    per_summary = rates.get("compressed_sparse_attention") if hasattr(config, "compress_rates") else 1
    if per_summary and (topk := number("index_topk")):
        yield topk * per_summary
    yield from (rate for rate in rates.values() if rate > _LONGEST_SUMMARY)
    if (blocks := number("index_topk_blocks")) and (size := number("index_block_size")):  # MiniMax-M3
        yield blocks * size
    if budget := number("indexer_budget"):  # Qwen 4
        yield budget
    if kept := number("keep_window_size"):  # Doge
        yield kept
    if getattr(config, "attention_type", None) == "block_sparse":  # BigBird
        yield (5 + 2 * config.num_random_blocks) * config.block_size


def _rates(config: Any) -> dict[str, int]:
    """Tokens per summary, for each kind of layer that makes summaries (DeepSeek-V4)."""
    rates = getattr(config, "compress_rates", None) or {}
    return {
        kind: rate for kind, rate in rates.items() if kind in (getattr(config, "layer_types", None) or ())
    }


def _original_lengths(config: Any) -> list[int]:
    """The lengths of pre-training that a rotary embedding may compare with."""
    named = [config.max_position_embeddings, getattr(config, "original_max_position_embeddings", None)]
    scaling = getattr(config, "rope_parameters", None) or {}
    for parameters in (scaling, *(each for each in scaling.values() if isinstance(each, dict))):
        named.append(parameters.get("original_max_position_embeddings"))
    return [int(length) for length in named if length]
