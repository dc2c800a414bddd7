"""The gate: training K clients stacked, step after step, equals training each alone with HF PEFT.

Sequences have unequal lengths, clients unequal numbers of batches. float64 must agree to 1e-10, float32 to
1e-5. Here are a decoder with rotation, one with biases of positions, and an encoder; `test_families.py` has
one step of every family.
"""

import pytest
import torch
from engine import apart, clients_data, moved, random_conversation, train_stacked
from peft import LoraConfig, PromptEncoderConfig, PromptTuningConfig
from peft.optimizers import create_loraplus_optimizer
from peft_alone import train_alone
from tiny import tiny_bloom, tiny_llama, tiny_roberta
from torch.optim import SGD, AdamW

from fedloom.client.optimisers import adam, sgd
from fedloom.training.algorithms import ADAMW_WEIGHT_DECAY, client_optimiser

ARCHITECTURES = {"llama": tiny_llama, "bloom": tiny_bloom, "roberta": tiny_roberta}
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bloom": ["query_key_value"],
    "roberta": ["query", "value", "dense"],
}
STEPS = (4, 2, 3)  # of each client

pytestmark = pytest.mark.usefixtures("full_precision")


def build(architecture, dtype):
    return ARCHITECTURES[architecture](3 if architecture == "roberta" else None).to(dtype)


def adapter(peft, architecture):
    task = "SEQ_CLS" if architecture == "roberta" else "CAUSAL_LM"
    if peft == "lora":
        return LoraConfig(
            task_type=task,
            r=4,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules=TARGETS[architecture],
        )
    if peft == "prompt-tuning":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=5)
    return PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=24)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("peft", ["lora", "prompt-tuning", "p-tuning"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stacked_sgd_equals_each_client_alone(architecture, peft, dtype, tolerance):
    base, config, data = build(architecture, dtype), adapter(peft, architecture), clients_data(STEPS)
    together = train_stacked(base, config, data, sgd(0.05))
    for k, steps in enumerate(data):
        alone, before, losses = train_alone(base, config, steps, lambda p: torch.optim.SGD(p, 0.05))
        assert moved(alone, before)
        assert apart(together.bank.row(k), alone) <= tolerance
        assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize(
    "architecture, peft, dtype, tolerance",
    [
        ("llama", "lora", torch.float64, 1e-10),
        ("llama", "lora", torch.float32, 1e-5),
        ("llama", "prompt-tuning", torch.float64, 1e-10),
        ("bloom", "lora", torch.float64, 1e-10),
    ],
)
def test_conversations_train_every_answer_and_nothing_else(architecture, peft, dtype, tolerance):
    base, config = build(architecture, dtype), adapter(peft, architecture)
    data = clients_data(STEPS, sequence=random_conversation)
    assert max(len(s.spans) for client in data for step in client for b in step for s in b) == 4
    together = train_stacked(base, config, data, sgd(0.05))
    for k, steps in enumerate(data):
        alone, before, losses = train_alone(base, config, steps, lambda p: torch.optim.SGD(p, 0.05))
        assert moved(alone, before)
        assert apart(together.bank.row(k), alone) <= tolerance
        assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize(
    "architecture, peft", [("llama", "lora"), ("bloom", "p-tuning"), ("roberta", "prompt-tuning")]
)
def test_stacked_adam_follows_the_loss_curve_of_each_client_alone(architecture, peft):
    base, config, data = build(architecture, torch.float64), adapter(peft, architecture), clients_data(STEPS)
    together = train_stacked(base, config, data, adam(0.01, weight_decay=0.01))
    for k, steps in enumerate(data):
        alone, _, losses = train_alone(base, config, steps, lambda p: torch.optim.AdamW(p, 0.01))
        assert apart(together.bank.row(k), alone) <= 1e-6
        assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-7)


def test_rslora_is_pefts():
    base, config, data = build("llama", torch.float64), adapter("lora", "llama"), clients_data(STEPS)
    config.use_rslora = True
    together = train_stacked(base, config, data, sgd(0.05))
    for k, steps in enumerate(data):
        alone, before, _ = train_alone(base, config, steps, lambda p: torch.optim.SGD(p, 0.05))
        assert moved(alone, before) and apart(together.bank.row(k), alone) <= 1e-10


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_loraplus_is_pefts(name):
    """Adam divides rounding by the size of a gradient: one step of it, many of SGD."""
    base, config = build("llama", torch.float64), adapter("lora", "llama")
    data, kind = (clients_data(STEPS), SGD) if name == "sgd" else (clients_data((1, 1)), AdamW)
    decay = {"weight_decay": ADAMW_WEIGHT_DECAY, "loraplus_weight_decay": ADAMW_WEIGHT_DECAY}

    def made(model):
        more = decay if name == "adamw" else {}
        return create_loraplus_optimizer(model, kind, lr=0.01, loraplus_lr_ratio=16.0, **more)

    together = train_stacked(base, config, data, client_optimiser(name, 0.01, 16.0))
    for k, steps in enumerate(data):
        alone, before, _ = train_alone(base, config, steps, made, of_model=True)
        assert moved(alone, before) and apart(together.bank.row(k), alone) <= 1e-10


def test_clipping_is_per_client():
    base, config, data = build("llama", torch.float64), adapter("lora", "llama"), clients_data(STEPS)
    together = train_stacked(base, config, data, sgd(0.5), clip_norm=0.1)
    for k, steps in enumerate(data):
        alone, *_ = train_alone(base, config, steps, lambda p: torch.optim.SGD(p, 0.5), clip_norm=0.1)
        assert apart(together.bank.row(k), alone) <= 1e-10


@pytest.mark.parametrize("architecture", ["llama", "roberta"])
def test_the_size_of_a_pass_changes_nothing(architecture):
    base, config, data = (
        build(architecture, torch.float64),
        adapter("lora", architecture),
        clients_data(STEPS),
    )
    at_once = train_stacked(base, config, data, sgd(0.05))
    for wave_tokens in (1, 60, 150):
        in_pieces = train_stacked(base, config, data, sgd(0.05), wave_tokens=wave_tokens)
        for k in range(len(data)):
            assert apart(in_pieces.bank.row(k), at_once.bank.row(k)) <= 1e-12
