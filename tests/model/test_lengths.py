"""What an architecture does only with long texts, which the trial's short ones do not show."""

import random

import pytest
import torch
from architectures import CAUSAL, DENSE, ENCODERS
from engine import make_stacked, start_bank
from families import full_float64, lora, losses, sequence
from tiny import tiny_model

from fedloom.data.encode import Tokens
from fedloom.model import lengths
from fedloom.model.lengths import longest_together

LONG = [sequence(random.Random(2), n) for n in (40, 90)]


def small(family, **settings):
    """A tiny model, and its stacked twin, with other settings than the family's."""
    config = (CAUSAL | ENCODERS)[family]()
    for name, value in settings.items():
        setattr(config, name, value)
    base = tiny_model(config, 2 if family in ENCODERS else None).double()
    return base, make_stacked(base, lora(base))


def test_top_k_lets_no_client_see_how_long_the_others_texts_are():
    with full_float64():
        _, model = small("glm-moe-dsa", index_topk=6)
        parameters = start_bank(model, 2).tensors
        alone = losses(model, start_bank(model, 1).tensors, LONG[:1])
        beside = losses(model, parameters, LONG)
    assert model.layout.together == 0, "the trial's texts are longer than that themselves"
    assert float(beside[0]) == pytest.approx(float(alone[0]), rel=1e-10)


@pytest.mark.parametrize(
    "family, tokens", [("deepseek-v3.2", DENSE), ("minimax-m3", DENSE), ("mixtral", None)]
)
def test_texts_share_a_pass_up_to_the_length_at_which_attention_becomes_sparse(family, tokens):
    assert longest_together(small(family)[0]) == tokens


def test_a_model_that_picks_among_tokens_in_a_way_that_nobody_knows_runs_batch_by_batch(monkeypatch):
    monkeypatch.setattr(lengths, "_dense_up_to", lambda config: ())
    with full_float64():
        _, model = small("deepseek-v3.2")
        alone = losses(model, start_bank(model, 1).tensors, LONG[:1])
        beside = losses(model, start_bank(model, 2).tensors, LONG)
    assert model.layout.together == 0
    assert float(beside[0]) == pytest.approx(float(alone[0]), rel=1e-10)


@torch.no_grad()
def test_a_short_text_leaves_bigbirds_attention_to_long_ones_as_it_is():
    base, model = small("big-bird, block sparse")
    long, short = LONG[0], Tokens(LONG[0].ids[:9], 8, 1)
    fresh = base(input_ids=torch.tensor([long.ids])).logits
    expected = torch.nn.functional.cross_entropy(fresh, torch.tensor([long.label]))
    for tokens in (long, short, long):
        found = losses(model, {}, [tokens])
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-6)
    full, _ = small("big-bird")
    assert not torch.allclose(full(input_ids=torch.tensor([long.ids])).logits, fresh, rtol=1e-3)
