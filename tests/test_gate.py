"""The gate: training K clients stacked equals training each alone with HF PEFT.

Sequences have unequal lengths, clients unequal numbers of batches, and every architecture is a real
one of transformers, small and random. float64 must agree to 1e-10, float32 to 1e-5.
"""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_bert, tiny_bloom, tiny_distilbert, tiny_gpt2, tiny_llama, tiny_roberta

from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fedloom.client.local import LocalRules, mean_step, train_locally
from fedloom.client.optimisers import adam, sgd
from fedloom.data.encode import Tokens
from fedloom.model.adapters.injection import saved_name
from fedloom.model.bank import AdapterBank
from fedloom.model.packing import shared_prefix
from fedloom.model.stacked import StackedModel

LMS = {"llama": tiny_llama, "bloom": tiny_bloom, "gpt2": tiny_gpt2}
CLASSIFIERS = {"distilbert": tiny_distilbert, "roberta": tiny_roberta, "bert": tiny_bert}
ARCHITECTURES = LMS | CLASSIFIERS
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bloom": ["query_key_value"],
    "gpt2": ["c_attn"],
    "distilbert": ["q_lin", "v_lin"],
    "roberta": ["query", "value"],
    "bert": ["query", "value", "dense"],
}
STEPS_PER_CLIENT = (10, 7, 10)


@pytest.fixture(autouse=True)
def norms_in_full_precision(monkeypatch):
    """Llama's norm rounds to float32 on its way; at 1e-10 that is noise, on either side."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


def build(architecture, dtype):
    model = ARCHITECTURES[architecture](**({"num_labels": 3} if architecture in CLASSIFIERS else {}))
    return model.to(dtype)


def adapter(peft, architecture):
    task = "SEQ_CLS" if architecture in CLASSIFIERS else "CAUSAL_LM"
    if peft == "lora":
        return LoraConfig(
            task_type=task, r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS[architecture]
        )
    if peft == "prompt-tuning":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=5)
    return PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=24)


def clients_data(seed=0):
    """For each client its steps, for each step two batches, for each batch two or three sequences."""
    rng = random.Random(seed)

    def sequence():
        ids = [3, 7, 9] + [rng.randrange(10, 90) for _ in range(rng.randrange(2, 12))]
        return Tokens(ids, len(ids) - rng.randrange(1, 4) if len(ids) > 6 else len(ids) - 1, rng.randrange(3))

    def batch():
        return [sequence() for _ in range(rng.randrange(2, 4))]

    return [[[batch(), batch()] for _ in range(steps)] for steps in STEPS_PER_CLIENT]


def reference_loss(model, sequences, classify, pad_id, virtual):
    """The mean loss of one padded batch. (HF's own loss would round float64 logits to float32.)"""
    longest = max(len(s.ids) for s in sequences)
    ids = torch.tensor([s.ids + [pad_id] * (longest - len(s.ids)) for s in sequences])
    mask = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask).logits
    if classify:
        return F.cross_entropy(logits, torch.tensor([s.label for s in sequences]))
    labels = torch.full_like(ids, -100)
    for row, s in enumerate(sequences):
        labels[row, s.answer_start : len(s.ids)] = ids[row, s.answer_start : len(s.ids)]
    return F.cross_entropy(logits[:, virtual:-1].flatten(0, 1), labels[:, 1:].flatten())


def train_alone(base, config, steps, make_optimiser, clip_norm=0.0):
    """One client with HF PEFT and torch.optim; returns its adapter, losses and first gradients."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).to(base.dtype).eval()
    named = {saved_name(n, config): p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = make_optimiser(list(named.values()))
    virtual = getattr(config, "num_virtual_tokens", 0)
    classify, losses, first = config.task_type == "SEQ_CLS", [], None
    for batches in steps:
        optimiser.zero_grad()
        loss = sum(reference_loss(model, b, classify, base.config.pad_token_id, virtual) for b in batches) / len(batches)
        loss.backward()
        first = first or {name: p.grad.clone() for name, p in named.items()}
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(list(named.values()), clip_norm)
        optimiser.step()
        losses.append(loss.item())
    return {name: p.detach() for name, p in named.items()}, losses, first


def train_stacked(base, config, data, optimiser, clip_norm=0.0, wave_tokens=4096):
    model = StackedModel(copy.deepcopy(base), copy.deepcopy(config), seed=1)
    model.share_prefix(shared_prefix([s for client in data for step in client for b in step for s in b]))
    work = [[mean_step(b, model.layout, [(0, k, i) for i in range(len(b))]) for b in client] for k, client in enumerate(data)]
    rules = LocalRules(optimiser, clip_norm=clip_norm, wave_tokens=wave_tokens)
    start = AdapterBank.repeat(model.initial, len(data)).map(lambda t: t.to(base.dtype))
    return train_locally(model, start, work, rules)


def apart(row, reference):
    """Relative difference over all of an adapter's parameters together."""
    difference = sum((row[n] - reference[n]).double().square().sum() for n in reference) ** 0.5
    return float(difference / sum(t.double().square().sum() for t in reference.values()) ** 0.5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("peft", ["lora", "prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stacked_sgd_equals_each_client_alone(architecture, peft, dtype, tolerance):
    base, config, data = build(architecture, dtype), adapter(peft, architecture), clients_data()
    together = train_stacked(base, config, data, sgd(0.05))
    for k, steps in enumerate(data):
        alone, losses, _ = train_alone(base, config, steps, lambda p: torch.optim.SGD(p, 0.05))
        assert together.bank.row(k).keys() == alone.keys()
        assert apart(together.bank.row(k), alone) <= tolerance
        assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("peft", ["lora", "prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("architecture", ["llama", "bloom", "roberta"])
def test_stacked_adam_follows_the_loss_curve_of_each_client_alone(architecture, peft):
    base, config, data = build(architecture, torch.float64), adapter(peft, architecture), clients_data()
    together = train_stacked(base, config, data, adam(0.01, weight_decay=0.01))
    for k, steps in enumerate(data):
        alone, losses, _ = train_alone(base, config, steps, lambda p: torch.optim.AdamW(p, 0.01))
        assert apart(together.bank.row(k), alone) <= 1e-6
        assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-7)


def test_clipping_is_per_client():
    base, config, data = build("llama", torch.float64), adapter("lora", "llama"), clients_data()
    together = train_stacked(base, config, data, sgd(0.5), clip_norm=0.1)
    for k, steps in enumerate(data):
        alone, *_ = train_alone(base, config, steps, lambda p: torch.optim.SGD(p, 0.5), clip_norm=0.1)
        assert apart(together.bank.row(k), alone) <= 1e-10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("wave_tokens", [1, 60, 150])
def test_the_size_of_a_pass_changes_nothing(architecture, wave_tokens):
    base, config, data = build(architecture, torch.float64), adapter("lora", architecture), clients_data()
    at_once = train_stacked(base, config, data, sgd(0.05))
    in_pieces = train_stacked(base, config, data, sgd(0.05), wave_tokens=wave_tokens)
    for k in range(len(data)):
        assert apart(in_pieces.bank.row(k), at_once.bank.row(k)) <= 1e-12
