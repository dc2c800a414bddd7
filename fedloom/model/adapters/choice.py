"""Which adapter to train, as a PEFT configuration."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence

from peft import LoraConfig, PeftConfig, PromptEncoderConfig, PromptTuningConfig, TaskType
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND as ALL_LINEAR
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel

from fedloom.errors import UserError
from fedloom.model.adapters.supported import check_adapter, is_linear, linear_names
from fedloom.model.layers import decoder_layers
from fedloom.model.structure import setting

log = logging.getLogger(__name__)

ENCODER_HIDDEN_SIZE = 768
"""Width of p-tuning's MLP encoder."""

# What a query's projection is called: `q_proj`, `query`, `q_lin`, `Wq`; its value's is called alike.
_QUERY = re.compile(r"(W?)(q|query)(_\w+)?")
_VALUE_OF = {"q": "v", "query": "value"}
# One projection for query, key and value: `qkv_proj`, `Wqkv`, `query_key_value`, `c_attn`.
_FUSED = re.compile(r"\w*qkv\w*|query_key_value|c_attn|W_pack", re.IGNORECASE)


def lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    dropout: float,
    target_modules: Sequence[str] | str | None,
    rslora: bool = False,
) -> PeftConfig:
    """LoRA on the layers of these names.

    Args:
        model: Its weights are not looked at.
        r: Rank.
        alpha: LoRA's scale is ``alpha / r``.
        rslora: It is ``alpha / sqrt(r)`` instead, rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732).
        dropout: Before the low-rank term.
        target_modules: Names, the last parts of modules' names; or a regular expression for whole names, or
            ``all-linear``; None chooses, see `default_targets`.

    Raises:
        UserError: The model has no such layers, or one of them is the language model's head.
    """
    targets = default_targets(model) if target_modules is None else target_modules
    if list(targets) == [ALL_LINEAR] or targets == ALL_LINEAR:
        targets = _all_linear(model)
    elif target_modules is not None:
        _check_names(model, targets)
    return LoraConfig(
        task_type=_task_type(model),
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rslora,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )


def prompt_tuning(model: PreTrainedModel, *, virtual_tokens: int) -> PeftConfig:
    """Virtual tokens whose embeddings are learnt."""
    return PromptTuningConfig(task_type=_task_type(model), num_virtual_tokens=virtual_tokens, **_sizes(model))


def p_tuning(model: PreTrainedModel, *, virtual_tokens: int) -> PeftConfig:
    """Virtual tokens that a learnt MLP makes."""
    return PromptEncoderConfig(
        task_type=_task_type(model),
        num_virtual_tokens=virtual_tokens,
        encoder_hidden_size=ENCODER_HIDDEN_SIZE,
        **_sizes(model),
    )


def with_drawn(config: PeftConfig, drawn: Iterable[str]) -> PeftConfig:
    """Let layers train and be saved with an adapter that the model's files do not hold.

    They were drawn at random, so that the adapter would mean nothing on a model for which they are drawn
    again.

    Args:
        config: Changed in place, and returned.
        drawn: Their names in the model. PEFT itself takes a classifier's last layers.
    """
    names = [
        name for name in drawn if not any(part.endswith(tuple(SEQ_CLS_HEAD_NAMES)) for part in _above(name))
    ]
    if names:
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *names})
    return config


def default_targets(model: PreTrainedModel) -> list[str] | str:
    """The layers to adapt where nobody names any, as names or a regular expression.

    PEFT's default for the architecture; where it has none, the projections of query and value, else the one
    that query, key and value share, else every linear layer. Only layers of the transformer that reads text
    count, so that of a model that also sees or hears nothing else is adapted.

    Raises:
        UserError: There is no linear layer.
    """
    kind, layers = model.config.model_type, _text_layers(model)
    default = DEFAULT_TARGETS.get(kind)
    if isinstance(default, str) and any(re.fullmatch(default, name) for name, _ in model.named_modules()):
        return default
    there = linear_names(model, layers)
    if not isinstance(default, str) and default and set(default) <= set(there):
        return _within(model, layers, default)
    scopes = (layers, "")  # of a model that keeps its attention apart, the layers are not all
    chosen = next((found for scope in scopes if (found := _projections(linear_names(model, scope)))), [])
    for scope in scopes:
        chosen = chosen or [
            name for name in linear_names(model, scope) if _runs(model, _within(model, scope, [name]))
        ]
    if not chosen:
        raise UserError(
            f"model {model.name_or_path!r}: a {kind} model has no linear layers that LoRA could adapt; "
            "choose another model"
        )
    log.info("PEFT has no default layers for a %s model: LoRA on %s", kind, ", ".join(chosen))
    inside = set(chosen) <= set(there)
    return _within(model, layers if inside else "", chosen)


def _projections(names: Collection[str]) -> list[str]:
    for name in names:
        query = _QUERY.fullmatch(name)
        if query:
            value = query[1] + _VALUE_OF[query[2]] + (query[3] or "")
            if value in names:
                return [name, value]
    return [name for name in names if _FUSED.fullmatch(name)]


def _all_linear(model: PreTrainedModel) -> list[str] | str:
    """Every linear layer that PEFT means and that runs; of a model that also sees, those that read text."""
    several = model.config.get_text_config() is not model.config
    layers = _text_layers(model) if several else ""
    if not several and _runs(model, ALL_LINEAR):
        return ALL_LINEAR
    every = linear_names(model, layers)
    chosen = [name for name in every if _runs(model, _within(model, layers, [name]))]
    whole = tuple(SEQ_CLS_HEAD_NAMES)  # of a classifier these train whole
    left_out = [name for name in every if name not in chosen and not name.endswith(whole)]
    if left_out:
        log.warning(
            "target_modules: all-linear without %s: PEFT would take them for whole experts, or not at all",
            ", ".join(left_out),
        )
    return _within(model, layers, chosen)


def _runs(model: PreTrainedModel, targets: list[str] | str) -> bool:
    try:
        check_adapter(model, LoraConfig(task_type=_task_type(model), r=1, target_modules=targets))
    except UserError:
        return False
    return True


def _text_layers(model: PreTrainedModel) -> str:
    """The name of the list of layers; "" where there is none, and then the whole model counts."""
    try:
        return decoder_layers(model)[0]
    except UserError:
        return ""


def _within(model: nn.Module, layers: str, names: Sequence[str]) -> list[str] | str:
    """Names, where they mean linear layers of the layers alone; else a regular expression that does."""
    every = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in names]
    below = f"{layers}." if layers else ""
    meant = [name for name in every if name.startswith(below) and is_linear(model.get_submodule(name))]
    if meant == every:
        return list(names)
    ways = {
        r"\.".join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))
        for name in meant
    }
    return "|".join(sorted(ways))


def _check_names(model: PreTrainedModel, targets: Sequence[str] | str) -> None:
    kind, head = model.config.model_type, model.get_output_embeddings()
    found: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(targets, str):
            matching = {targets} if re.fullmatch(targets, name) else set()
        else:
            matching = {target for target in targets if f".{name}".endswith(f".{target}")}
        if matching and module is head:
            raise UserError(
                f"target_modules: {name} is the language model's head, which stays frozen; leave it out"
            )
        found |= matching
    for target in [targets] if isinstance(targets, str) else targets:
        if target not in found:
            raise UserError(
                f"target_modules: {target} is no layer of this {kind} model; its linear layers are "
                f"{', '.join(linear_names(model))}, and {ALL_LINEAR} is all of them"
            )


def _above(name: str) -> list[str]:
    """A dotted name and the names above it: ``a.b -> a, a.b``."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _task_type(model: PreTrainedModel) -> TaskType:
    return TaskType.CAUSAL_LM if model.can_generate() else TaskType.SEQ_CLS


def _sizes(model: PreTrainedModel) -> dict[str, int]:
    """Sizes that PEFT cannot read off every configuration (DistilBERT's, for one)."""
    return {
        "token_dim": model.get_input_embeddings().embedding_dim,
        "num_layers": setting(model.config, "num_hidden_layers") or 1,
        "num_attention_heads": setting(model.config, "num_attention_heads") or 1,
    }
