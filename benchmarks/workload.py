"""What every contender trains on: the same frozen model, the same starting adapter, the same sequences.

Everything here is a function of the settings alone, so that two processes build the same without talking.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from workers import Settings

from fedloom.data.draws import draw_batches
from fedloom.data.encode import Tokens, encode
from fedloom.data.partition import iid
from fedloom.data.randomness import derive_seed, numpy_rng
from fedloom.data.sources import load_splits
from fedloom.data.tasks import TASKS
from fedloom.data.templates import prompt_format
from fedloom.errors import UserError
from fedloom.model.base import BaseModel, check_quantize, load_base, resolve_device
from fedloom.model.layers import decoder_layers

SEED = 3407
LEARNING_RATE = 0.01
RANK, ALPHA = 16, 32

# Sizes of published models, for random weights where nothing can be downloaded.
ARCHITECTURES: dict[str, dict[str, int]] = {
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "llama-1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    # For trying the benchmark itself.
    "llama-tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 500,
    },
}

# Random sequences are as long as GSM8K's in tokens of SmolLM2: a shared instruction, then lognormal lengths
# (mean and deviation of the logarithm) of question and answer; means of 66 and 94 tokens.
INSTRUCTION_TOKENS = 29
QUESTION_LENGTHS, ANSWER_LENGTHS = (4.14, 0.31), (4.45, 0.44)
RANDOM_SEQUENCES = 512


@dataclass(frozen=True)
class Data:
    """All sequences, and those of the round.

    Attributes:
        sequences: Everything the clients have.
        shares: Which of them are whose.
        dropped: Sequences left out because they are longer than the padding.
        rounds: ``[client][batch][sequence]`` of the round.
    """

    sequences: list[Tokens]
    shares: list[np.ndarray]
    dropped: int
    rounds: list[list[list[Tokens]]]


def lora() -> LoraConfig:
    """LoRA on PEFT's default modules of the architecture (q and v), no dropout: losses are comparable."""
    return LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0)


def load(settings: Settings, dtype: str) -> BaseModel | PreTrainedModel:
    """The frozen model: a real one with its tokenizer, or one with random weights."""
    if settings.arch is None:
        return load_base(settings.model, device=settings.device, dtype=dtype, quantize=settings.quantize)
    if settings.arch not in ARCHITECTURES:
        raise UserError(f"--arch {settings.arch}: must be one of {', '.join(ARCHITECTURES)}.")
    if settings.quantize == "8bit":
        raise UserError("--quantize 8bit: with --arch it must be none or 4bit.")
    device = resolve_device(settings.device)
    check_quantize(settings.quantize, device)
    config = LlamaConfig(**ARCHITECTURES[settings.arch])
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    if settings.quantize == "4bit":
        _quantise(model)
    return model.requires_grad_(False).eval()


def _quantise(model: PreTrainedModel) -> None:
    """NF4 as transformers loads it: all linear layers but the head."""
    bnb: Any = importlib.import_module("bitsandbytes")
    for layer in decoder_layers(model)[1]:
        for name, old in list(layer.named_modules()):
            if isinstance(old, nn.Linear):
                new = bnb.nn.Linear4bit(
                    old.in_features,
                    old.out_features,
                    bias=False,
                    compute_dtype=old.weight.dtype,
                    quant_type="nf4",
                    device="meta",
                )
                new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
                layer.set_submodule(name, new.to(old.weight.device))
    # PEFT asks for this mark before it wraps 4-bit layers.
    model.is_loaded_in_4bit = True


def load_data(settings: Settings, base: BaseModel | PreTrainedModel) -> Data:
    """The clients' sequences, and which of them the round draws."""
    if isinstance(base, BaseModel):
        task = TASKS[settings.data_name]
        folder = Path(settings.data_dir) if settings.data_dir else None
        examples = load_splits(task, data_dir=folder, seed=SEED, token=None).train
        form = prompt_format(base.tokenizer, task.instruction)
        sequences, dropped = encode(examples, base.tokenizer, form, settings.pad)
    else:
        sequences, dropped = _random_sequences(base.config.vocab_size, settings.pad)
    shares = iid(len(sequences), settings.clients, SEED)
    rounds = []
    for client, share in enumerate(shares):
        drawn = draw_batches(
            share, seed=SEED, client=client, start=0, count=settings.batches, batch_size=settings.batch_size
        )
        rounds.append([[sequences[i] for i in batch] for batch in drawn])
    return Data(sequences, shares, dropped, rounds)


def _random_sequences(vocabulary: int, longest: int) -> tuple[list[Tokens], int]:
    rng = numpy_rng(SEED, "benchmark sequences")
    instruction = rng.integers(3, vocabulary, INSTRUCTION_TOKENS).tolist()
    made = []
    for _ in range(RANDOM_SEQUENCES):
        question, answer = (
            int(rng.lognormal(*lengths)) + 1 for lengths in (QUESTION_LENGTHS, ANSWER_LENGTHS)
        )
        ids = instruction + rng.integers(3, vocabulary, question + answer).tolist()
        made.append(Tokens(ids, INSTRUCTION_TOKENS + question, -1))
    kept = [sequence for sequence in made if len(sequence.ids) <= longest]
    return kept, len(made) - len(kept)


def starting_adapter(initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter in the middle of training, the same for all contenders.

    LoRA starts with B = 0, where the loss says nothing about A and B; here both are small random numbers.
    """
    moved = {}
    for i, (name, t) in enumerate(sorted(initial.items())):
        draws = torch.Generator().manual_seed(derive_seed(SEED, "benchmark adapter", i))
        moved[name] = (0.02 * torch.randn(t.shape, generator=draws)).to(t.device)
    return moved


def linear_parameters(model: PreTrainedModel) -> int:
    """Weights of the frozen linear layers inside the decoder layers, without embedding and head."""
    total = 0
    for module in decoder_layers(model)[1].modules():
        if hasattr(module, "in_features"):  # quantised weights have no shape of their own
            total += module.in_features * module.out_features
        elif getattr(getattr(module, "weight", None), "ndim", 0) == 2:
            total += module.weight.numel()
    return total
