"""What a rule does in a step: a gradient of its own, and what it remembers of each."""

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from peft import LoraConfig
from tiny import tiny_llama

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.client.rules.none import none
from fedloom.errors import UserError
from fedloom.model.packing import build_pack

LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
DATA = clients_data((3, 1, 2))  # steps of each client
LR, RHO = 0.2, 0.3

pytestmark = pytest.mark.usefixtures("full_precision")


@pytest.fixture(scope="module")
def model():
    return make_stacked(tiny_llama(num_hidden_layers=1).double(), LORA, DATA)


def train(model, rule, **rules):
    work = [steps_of(k, client, model.layout) for k, client in enumerate(DATA)]
    memory = {name: t.expand(3, *t.shape) for name, t in rule.memory(model.initial).items()}
    return train_locally(model, start_bank(model, 3), work, LocalRules(sgd(LR), rule, **rules), memory=memory)


def sharpness_aware(gradient_at, bank, start, memory, received):
    """FedSAM (Qu et al., 2022, arXiv:2206.02618)."""
    g = gradient_at(bank)
    norms = g.norms().clamp(min=1e-12)
    return gradient_at(bank.map(lambda w, d: w + RHO * d / norms.view(-1, *[1] * (d.ndim - 1)), g))


def gradient_of(model, step, weights):
    leaves = {name: t.clone().requires_grad_() for name, t in weights.items()}
    loss = model.losses(leaves, build_pack([step], model.layout)).loss[0]
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("wave_tokens", [1, 4096])
def test_a_gradient_taken_at_another_place_is_that_of_the_paper(model, wave_tokens):
    ours = train(model, none()._replace(gradient=sharpness_aware), wave_tokens=wave_tokens)
    for k, client in enumerate(DATA):
        weights = start_bank(model, 1).tensors
        for step in steps_of(k, client, model.layout):
            g = gradient_of(model, step, weights)
            norm = torch.cat([t.flatten() for t in g.values()]).norm()
            g = gradient_of(model, step, {name: w + RHO * g[name] / norm for name, w in weights.items()})
            weights = {name: w - LR * g[name] for name, w in weights.items()}
        for name, w in weights.items():
            torch.testing.assert_close(ours.bank.tensors[name][k], w[0], rtol=1e-10, atol=1e-12)
    plain = train(model, none(), wave_tokens=wave_tokens)
    assert torch.equal(ours.tokens, 2 * plain.tokens) and torch.equal(ours.labels, plain.labels)


def test_what_is_remembered_of_a_step_is_that_of_clients_that_took_it(model):
    def observe(gradients, bank, start, memory, received):
        return {"norms": memory["norms"] + gradients.norms(), "steps": memory["steps"] + 1}

    rule = none()._replace(
        memory=lambda adapter: {"norms": torch.zeros((), dtype=torch.float64), "steps": torch.zeros(())},
        observe=observe,
        correct=lambda g, bank, start, memory, received: g.map(lambda t: t * memory["steps"].view(-1, 1, 1)),
    )
    found = train(model, rule)
    assert found.memory["steps"].tolist() == [len(client) for client in DATA]
    # The one step of client 2 is that of plain training: it saw its own count, 1, in it.
    for name, t in train(model, none()).bank.tensors.items():
        torch.testing.assert_close(found.bank.tensors[name][1], t[1], rtol=1e-12, atol=1e-14)


def test_a_gradient_that_looks_at_no_data_is_refused(model):
    with pytest.raises(UserError, match="never calls gradient_at"):
        train(model, none()._replace(gradient=lambda at, bank, *others: bank))
