"""How many tokens a pass gets: enough for the processor, and no more than memory holds."""

import psutil
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from fedloom.model.memory import auto_wave_tokens

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch):
    """Say how much memory is free."""

    def say(bytes_free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": bytes_free})())

    return say


def without_weights(model_class, config):
    with torch.device("meta"):
        return model_class(config)


@pytest.fixture
def small():
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return without_weights(BertModel, config)


@pytest.fixture
def large():
    config = LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, intermediate_size=8192
    )
    return without_weights(LlamaModel, config)


def test_a_small_model_gets_larger_passes(small, large, free):
    free(200 * GIB)
    assert auto_wave_tokens(small) == 4096
    assert auto_wave_tokens(large) == 2048


def test_activations_fit_into_what_is_free(large, free):
    free(20 * GIB)
    tokens = auto_wave_tokens(large)
    assert 256 < tokens < 2048
    kept = 16 * (20 * 2048 + 5 * 8192) * 4  # bytes that a token's backward pass needs
    assert tokens * kept <= 0.4 * 20 * GIB < (tokens + 1) * kept


def test_processes_share_what_is_free(large, free):
    free(20 * GIB)
    assert auto_wave_tokens(large, sharing=2) == auto_wave_tokens(large) // 2


def test_there_are_always_some(large, free):
    free(0)
    assert auto_wave_tokens(large) == 256
