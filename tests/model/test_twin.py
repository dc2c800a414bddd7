"""A second model over the same numbers."""

import pytest
import torch
from tiny import tiny_bert, tiny_bloom, tiny_gpt2, tiny_llama

from fedloom.model.twin import twin, writes

IDS = torch.tensor([[3, 5, 7, 11]])


@pytest.mark.parametrize(
    "model",
    [tiny_llama(tie_word_embeddings=True), tiny_gpt2(), tiny_bloom(), tiny_bert()],
    ids=lambda model: model.config.model_type,
)
def test_a_twin_says_the_same_and_shares_memory_alone(model):
    other = twin(model)
    assert other(IDS).logits.equal(model(IDS).logits)
    memory, twins = ([t.data_ptr() for t in m.state_dict().values()] for m in (model, other))
    assert memory == twins  # tied weights are tied, too
    before, name = model(IDS).logits, next(name for name, _ in other.named_parameters())
    module, _, last = name.rpartition(".")
    getattr(other.get_submodule(module), last).data = torch.zeros(1)
    other.config.pad_token_id = 7
    assert model(IDS).logits.equal(before) and model.config.pad_token_id == 0


def test_who_writes_into_the_memory_of_a_twin_is_found_out():
    model = tiny_llama()
    other, before = twin(model), writes(model)
    assert writes(model) == before
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    assert writes(model) != before
