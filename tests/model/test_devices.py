"""A model on a GPU: all of a pass stays there, in blocks or a loop, and trains what it trains on the CPU."""

import copy

import pytest
import torch
from engine import apart, clients_data, make_stacked, moved, random_sequence, start_bank, steps_of
from peft import LoraConfig, PromptTuningConfig
from pretend_gpu import CUDA, a_gpu
from tiny import tiny_bert, tiny_llama

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import adam
from fedloom.data.encode import Tokens
from fedloom.model import blocks
from fedloom.model.layout import Batch
from fedloom.model.per_example import clipped_sums


def preference(rng):
    """A question with two answers."""
    one, other = random_sequence(rng), random_sequence(rng)
    n = one.answer_start
    return one._replace(rejected=Tokens(one.ids[:n] + other.ids[n:], n, -1), reference=0.2)


def lora(task, *modules):
    return LoraConfig(task_type=task, r=4, lora_alpha=8, target_modules=list(modules))


ONE = {"num_hidden_layers": 1}
CASES = {
    "llama": (lambda: tiny_llama(**ONE), lora("CAUSAL_LM", "q_proj", "v_proj", "down_proj"), random_sequence),
    "preferences": (lambda: tiny_llama(**ONE), lora("CAUSAL_LM", "q_proj"), preference),
    "prompts": (
        lambda: tiny_llama(**ONE),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        random_sequence,
    ),
    "bert": (lambda: tiny_bert(3, **ONE), lora("SEQ_CLS", "query", "value"), random_sequence),
}


def trained(model, data, **more):
    """All clients, each from its own start: losses, adapters and the optimiser's moments."""
    bank = start_bank(model, len(data))
    bank = bank.map(lambda t: t + 0.1 * torch.arange(1.0, 4, device=t.device).view(-1, *[1] * (t.ndim - 1)))
    work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]
    return train_locally(model, bank, work, LocalRules(adam(0.01), clip_norm=1.0, **more))


@pytest.mark.parametrize("name", CASES)
def test_training_on_a_gpu_is_that_on_the_cpu(name, monkeypatch, tmp_path):
    build, config, sequence = CASES[name]
    data = clients_data((1, 1, 1), sequence=sequence)
    base = build().double()
    alone = make_stacked(base, config, data)
    wanted, examples = trained(alone, data), by_example(alone, data)
    with a_gpu():
        model = make_stacked(copy.deepcopy(base).to(CUDA), config, data)
        assert model.layout == alone.layout
        in_blocks = trained(model, data)
        there = [*in_blocks.bank.tensors.values(), *in_blocks.state.values()]
        dropped = trained(model, data, dropout_seed=3)
        clipped = by_example(model, data)
        monkeypatch.setattr(blocks, "pay", lambda device, lengths: False)
        looped = trained(model, data)
        model.save(in_blocks.bank.row(1), tmp_path)
        found = [
            ({n: t.cpu() for n, t in result.bank.row(k).items()}, k)
            for result in (in_blocks, looped)
            for k in range(len(data))
        ]
        clipped = {n: t.cpu() for n, t in clipped.items()}
    assert all(t.device == CUDA for t in there if t.is_floating_point())
    for row, k in found:
        assert apart(row, wanted.bank.row(k)) <= 1e-9
    assert moved(wanted.bank.row(0), wanted.bank.row(1))
    torch.testing.assert_close(in_blocks.loss, wanted.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(dropped.loss, wanted.loss, rtol=0.5, atol=0)
    assert apart(clipped, examples) <= 1e-9


def by_example(model, data):
    """Sums of gradients that are cut example by example."""
    owned = [
        [Batch([one], 1.0, (0, k, i)) for i, one in enumerate(client[0][0])] for k, client in enumerate(data)
    ]
    return clipped_sums(model, start_bank(model, len(data)).tensors, {}, owned, clip=0.1)
