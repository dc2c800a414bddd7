"""Which adapter to train, as a PEFT configuration."""

from __future__ import annotations

from peft import LoraConfig, PeftConfig, PromptEncoderConfig, PromptTuningConfig, TaskType
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers import PreTrainedModel

from fedloom.config import UserError

ENCODER_HIDDEN_SIZE = 768
"""Width of p-tuning's MLP encoder."""


def lora(
    model: PreTrainedModel, *, r: int, alpha: int, dropout: float, target_modules: list[str] | None
) -> PeftConfig:
    """LoRA on the layers of these names; None takes PEFT's default for the architecture.

    Raises:
        UserError: PEFT has no default for the architecture, or the model has no such layers.
    """
    kind = model.config.model_type
    targets = target_modules or list(DEFAULT_TARGETS.get(kind, []))
    if not targets:
        raise UserError(
            f"target_modules: PEFT has no default for the architecture {kind}; name the layers, "
            f"for example --target_modules {','.join(_linear_names(model)[:2])}"
        )
    head = model.get_output_embeddings()
    if targets != ["all-linear"]:
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
                raise UserError(
                    f"target_modules: {target} is no layer of this {kind} model; "
                    f"its linear layers are {', '.join(_linear_names(model))}"
                )
        for name, module in model.named_modules():
            if module is head and name.rpartition(".")[2] in targets:
                raise UserError(
                    f"target_modules: {name} is the language model's head, which stays frozen; leave it out"
                )
    return LoraConfig(
        task_type=_task_type(model),
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
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


def _task_type(model: PreTrainedModel) -> TaskType:
    return TaskType.CAUSAL_LM if model.can_generate() else TaskType.SEQ_CLS


def _sizes(model: PreTrainedModel) -> dict[str, int]:
    """Sizes that PEFT cannot read off every configuration (DistilBERT's, for one)."""
    config = model.config.get_text_config()
    return {
        "token_dim": model.get_input_embeddings().embedding_dim,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
    }


def _linear_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of the model's linear layers, heads left out."""
    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not head
    }
    return sorted(found)
