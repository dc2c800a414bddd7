"""Tiny random models and a tiny tokenizer, built from configs: no download, a few milliseconds each.

Hidden size 32, 2 layers, 4 attention heads, vocabulary of 100, dropout 0. Every default can be overridden:
`tiny_llama(num_hidden_layers=3, num_labels=2)`. Models are float32, in `eval()` mode; `.double()` works.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BloomConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

# Weights this large keep attention far from uniform, so that a wrong mask or position shows in the output.
INITIALIZER_RANGE = 0.2
SPECIAL_TOKENS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_LINES = (
    "Tom has 11 apples and buys 8 more. How many apples does Tom have?",
    "There are 24 books on 6 shelves. How many books are on each shelf?",
    "11 + 8 = 19",
    "24 / 6 = 4",
    "The answer is 19.",
    "user\nassistant\nsystem\n",
)


def tiny_model(config: PretrainedConfig, num_labels: int | None, seed: int = 0) -> PreTrainedModel:
    """A random model of this config: a causal LM, or a classifier where `num_labels` is a number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if num_labels is None:
            return AutoModelForCausalLM.from_config(config).eval()
        config.num_labels = num_labels
        return AutoModelForSequenceClassification.from_config(config).eval()


def _options(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    common = {"vocab_size": 100, "pad_token_id": 0, "initializer_range": INITIALIZER_RANGE}
    return {**common, **defaults, **overrides}


def tiny_llama(num_labels: int | None = None, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Llama with grouped queries: 4 query heads share 2 key and value heads."""
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return tiny_model(LlamaConfig(**_options(defaults, overrides)), num_labels, seed)


def tiny_bloom(num_labels: int | None = None, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """BLOOM: a fused `query_key_value` projection, ALiBi instead of positions."""
    defaults = {
        "hidden_size": 32,
        "n_layer": 2,
        "n_head": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return tiny_model(BloomConfig(**_options(defaults, overrides)), num_labels, seed)


def tiny_gpt2(num_labels: int | None = None, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """GPT-2: `Conv1D` projections and learned positions."""
    defaults = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "summary_first_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return tiny_model(GPT2Config(**_options(defaults, overrides)), num_labels, seed)


def _encoder_options(overrides: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return _options(defaults, overrides)


def tiny_bert(num_labels: int = 2, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """BERT, an encoder with a pooler, as a classifier."""
    return tiny_model(BertConfig(**_encoder_options(overrides)), num_labels, seed)


def tiny_roberta(num_labels: int = 2, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """RoBERTa: its positions start behind the pad token's id, here 1 as in the published models."""
    options = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **overrides}
    return tiny_model(RobertaConfig(**_encoder_options(options)), num_labels, seed)


def tiny_distilbert(num_labels: int = 2, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """DistilBERT, which has its own names for everything (`q_lin`, `v_lin`, `pre_classifier`)."""
    defaults = {
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 256,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    }
    return tiny_model(DistilBertConfig(**_options(defaults, overrides)), num_labels, seed)


def tiny_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens that encodes any text; pad is id 0, `<|im_end|>` ends an answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_LINES, trainer)
    pad, start, end = SPECIAL_TOKENS
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=start, eos_token=end)
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_llama(folder: Path, chat_template: bool = True, **overrides: Any) -> Path:
    """Save a tiny Llama and its tokenizer as an ordinary model folder; returns the folder."""
    tokenizer = tiny_tokenizer(chat_template)
    model = tiny_llama(vocab_size=len(tokenizer), **overrides)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pair_tokenizer() -> PreTrainedTokenizerFast:
    """The same bytes between BERT's marks: `[CLS] a [SEP] b [SEP]`, the second text of type 1."""
    tokenizer = tiny_tokenizer(chat_template=False).backend_tokenizer
    cls, sep = 1, 2
    start, end = SPECIAL_TOKENS[cls], SPECIAL_TOKENS[sep]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, cls), (end, sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        cls_token=start,
        sep_token=end,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def save_tiny_bert(folder: Path, **overrides: Any) -> Path:
    """Save a tiny BERT and its tokenizer as an ordinary model folder; returns the folder."""
    tokenizer = pair_tokenizer()
    tiny_bert(vocab_size=len(tokenizer), **overrides).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
