"""Which kinds of models stay out, told by their configuration before anything large is read."""

from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

from fedloom.errors import UserError

# What no structure shows.
_REASONS = {
    "rwkv": "carries a state from token to token that cannot be held apart by client",
    "mamba": "is made of state-space layers for which PEFT has no adapters",
    "falcon_mamba": "is made of state-space layers for which PEFT has no adapters",
    "xlstm": "carries a state from token to token that cannot be held apart by client",
    "xlnet": "reads a text in several orders at once",
    "reformer": "forgets what its layers compute, and gets no gradient where its embeddings are frozen",
    "ibert": "computes in whole numbers, through which no gradient passes",
}
_CROSS_ATTENTION = ("encoder_attn", "cross_attn", "crossattention")


def check_kind(
    name: str, config: PretrainedConfig, num_labels: int | None, structure: PreTrainedModel | None = None
) -> None:
    """Refuse a model that cannot do what is asked, or that does not run here.

    Args:
        name: The model, for the message.
        config: Its configuration.
        num_labels: Classes; None for a language model.
        structure: The model without weights, where that is there already.

    Raises:
        UserError: Says what the model is, and what to choose.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise _refused(
            name, kind, "has an encoder and a decoder, and only models that are one of the two run here"
        )
    if kind in _REASONS:
        raise _refused(name, kind, _REASONS[kind])
    # It would load as a language model too, with a head of noise; that is never meant.
    if num_labels is None and encodes(config):
        raise UserError(
            f"model {name!r}: a {kind} encoder, which classifies but does not write "
            "answers. Choose a causal language model, or a classification task."
        )
    auto, mapping, does = (
        ("AutoModelForCausalLM", MODEL_FOR_CAUSAL_LM_MAPPING, "is no causal language model")
        if num_labels is None
        else (
            "AutoModelForSequenceClassification",
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            "has no head that classifies texts",
        )
    )
    if type(config) not in mapping and auto not in (getattr(config, "auto_map", None) or {}):
        raise _refused(name, kind, does)
    if structure is not None and any(
        module.rpartition(".")[2] in _CROSS_ATTENTION for module, _ in structure.named_modules()
    ):
        raise _refused(name, kind, "reads a second input beside the text (cross-attention)")


def encodes(config: PretrainedConfig) -> bool:
    """Whether a model reads text and cannot write it."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def _refused(name: str, kind: str, why: str) -> UserError:
    return UserError(
        f"model {name!r}: a {kind} model {why}. Choose a causal language model (Llama, Qwen, Mistral, Gemma, "
        "GPT-2, …), or to classify also an encoder (BERT, RoBERTa, DeBERTa, ModernBERT, …)."
    )
