"""Every family of transformers that fedloom is said to run: training stacked equals training alone with PEFT.

The table of `docs/models.md` is made of what is found here: `python -m pytest tests/test_families.py` fails where
the page says otherwise, and `python tests/test_families.py` writes it.
"""

import copy
import random

import pytest
import torch
from architectures import CAUSAL, ENCODERS
from engine import apart, make_stacked, start_bank, steps_of
from peft import LoraConfig
from test_gate import train_alone
from tiny import tiny_model
from torch.overrides import TorchFunctionMode

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.data.encode import Tokens

FAMILIES = {**{name: (make, None) for name, make in CAUSAL.items()}, **{n: (m, 2) for n, m in ENCODERS.items()}}
TARGETS = [
    ("q_proj", "v_proj"), ("query", "value"), ("query_proj", "value_proj"), ("q_lin", "v_lin"), ("query_key_value",),
    ("qkv_proj",), ("Wqkv",), ("c_attn",), ("q_head", "v_head"), ("in_proj",), ("kv_b_proj", "o_proj"), ("q", "v"),
    ("dense",),
]  # fmt: skip


# In float64 transformers' own code fails, or it reads no text as short as these are.
NOT_HERE = {"xglm": "float64", "canine": "short texts"}
# Plain transformers lets a sequence's angles depend on the longest one of all batches before.
REMEMBERING = {"llama, dynamic rope"}


class KeepFloat64(TorchFunctionMode):
    """Many architectures round to float32 on the way (norms, rotations, softmax): at 1e-10 that is noise."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
        return function(*args, **kwargs)


def build(name, dtype):
    make, labels = FAMILIES[name]
    model = tiny_model(make(), labels).to(dtype)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = 0
    if dtype == torch.float64:
        model.config._experts_implementation = "eager"  # torch's grouped product knows no float64
    return model


def lora(model):
    linear = (torch.nn.Linear, torch.nn.Conv1d)
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, linear) or type(module).__name__ == "Conv1D"
    }
    found = next(targets for targets in TARGETS if names.issuperset(targets))
    task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
    return LoraConfig(task_type=task, r=2, target_modules=list(found))


def some_data(clients=2, steps=2):
    """For each client its steps of one batch; lengths from 5 to 22, in some batches all alike."""
    rng = random.Random(1)

    def sequence(length):
        ids = [3, 7, 9] + [rng.randrange(10, 300) for _ in range(length - 3)]
        return Tokens(ids, length - 2, rng.randrange(2))

    def batch(step):
        lengths = [12, 12] if step == 1 else [rng.randrange(5, 23) for _ in range(rng.randrange(2, 4))]
        return [sequence(n) for n in lengths]

    return [[[batch(step)] for step in range(steps)] for _ in range(clients)]


DATA = some_data()


def train(model, clients, dtype):
    work = [steps_of(k, DATA[k], model.layout) for k in clients]
    return train_locally(model, start_bank(model, len(clients), dtype), work, LocalRules(sgd(0.05)))


@pytest.mark.parametrize("name", FAMILIES)
def test_training_beside_others_equals_training_alone_with_peft(name):
    with KeepFloat64():
        base = build(name, torch.float64)
        config = lora(base)
        model = make_stacked(base, config, DATA)
        together = train(model, [0, 1], torch.float64)
        assert apart(train(model, [1], torch.float64).bank.row(0), together.bank.row(1)) <= 1e-10
        for k in range(2) if name not in REMEMBERING else ():
            alone, _, losses = train_alone(base, config, DATA[k], lambda p: torch.optim.SGD(p, 0.05))
            assert apart(together.bank.row(k), alone) <= 1e-10
            assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
