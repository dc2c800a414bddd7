"""The families of transformers that fedloom is said to run, as tiny models, and what each of them must give.

The table in `docs/models.md` says how each is run.
"""

import random
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from architectures import CAUSAL, ENCODERS
from engine import apart, make_stacked, start_bank, steps_of
from peft import LoraConfig, PeftModel
from peft_alone import train_alone
from places import ROOT
from tiny import tiny_model
from transformers.pytorch_utils import Conv1D

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch, Head
from fedloom.model.packing import build_pack

PAGE = ROOT / "docs" / "models.md"
# What transformers' own code does not do: compute in float64, or read texts as short as these are.
REFUSED = {"xglm": "float64", "canine": "a few short sequences"}
FAMILIES = {name: (make, None) for name, make in CAUSAL.items() if name not in REFUSED}
FAMILIES |= {name: (make, 2) for name, make in ENCODERS.items() if name not in REFUSED}
# Their attention is no part of a list of layers, or the test adapts nothing in one.
WITHOUT_LAYERS = {"squeezebert", "xlm"}
# transformers' own code wants the ids of all tokens, and virtual ones have none.
WITHOUT_PROMPTS = ["gemma-4", "deepseek-v4", "qwen-4-exp", "longformer"]
TO_FLOAT = torch.Tensor.float
TARGETS = """q_proj v_proj; query value; query_proj value_proj; q_lin v_lin; query_key_value; qkv_proj; Wqkv;
    c_attn; q_head v_head; in_proj; kv_b_proj o_proj; q_b_proj kv_proj; q v; c_proj; dense"""


@contextmanager
def full_float64():
    """Many architectures round to float32 on the way (norms, rotations, softmax): at 1e-10 that is noise.

    A `TorchFunctionMode`, which sees every call, would do the same and take a third of all time.
    """

    def keep(method):
        def kept(x, *args, **kwargs):
            if x.dtype == torch.float64:
                if method is TO_FLOAT:
                    return x
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
            return method(x, *args, **kwargs)

        return kept

    methods = [(torch.Tensor, name) for name in ("float", "to", "type", "softmax", "sum", "mean", "cumsum")]
    functions = [(torch, name) for name in ("softmax", "sum", "cumsum")]
    before = [(owner, name, getattr(owner, name)) for owner, name in methods + functions]
    for owner, name, method in before:
        setattr(owner, name, keep(method))
    try:
        yield
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def build(name, dtype, families=FAMILIES):
    make, labels = families[name]
    model = tiny_model(make(), labels).to(dtype)
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = 0
    if dtype == torch.float64:
        model.config._experts_implementation = "eager"  # torch's grouped product knows no float64
    return model


def lora(model):
    linear = ((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D))
    names = {name.rpartition(".")[2] for name, _ in linear}
    found = next((t.split() for t in TARGETS.split(";") if names.issuperset(t.split())), "all-linear")
    task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
    # Both factors random: with B = 0, A would have no gradient.
    return LoraConfig(task_type=task, r=2, lora_alpha=4, target_modules=found, init_lora_weights=False)


def sequence(rng, length):
    ids = [3, 7, 9] + [rng.randrange(10, 300) for _ in range(length - 3)]
    return Tokens(ids, length - 2, rng.randrange(2))


RNG = random.Random(1)
# A batch for each of two clients: one of unequal lengths, in the other all alike.
SHORT = [[sequence(RNG, n) for n in lengths] for lengths in ([9, 21, 5], [12, 12])]
# The first reaches beyond every length at which an architecture begins to do something else.
BATCHES = [[sequence(RNG, 34), sequence(RNG, 70), SHORT[0][2]], SHORT[1]]
DATA = [[[batch]] for batch in BATCHES]


def first_step(model, dtype, clients=(0, 1)):
    """The clients' adapters after one step of SGD from a start at which no part of them is 0."""
    work = [steps_of(k, DATA[k], model.layout) for k in clients]
    return train_locally(model, start_bank(model, len(clients), dtype), work, LocalRules(sgd(0.05)))


def logits_alone(plain, tokens, virtual=0):
    ids = torch.tensor([tokens.ids])
    logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits if plain.config.num_labels == 2 and logits.dim() == 1 else logits[virtual:]


@torch.no_grad()
def loss_alone(plain, tokens, virtual=0):
    """What an ordinary model says of a sequence."""
    logits = logits_alone(plain, tokens, virtual)
    if logits.dim() == 1:
        return F.cross_entropy(logits[None], torch.tensor([tokens.label]))
    return F.cross_entropy(
        logits[tokens.answer_start - 1 : -1], torch.tensor(tokens.ids[tokens.answer_start :])
    )


def losses(model, parameters, clients):
    """What the stacked model says of one sequence of each client."""
    labels = 1 if model.layout.classify else 2
    with torch.no_grad():
        return model.losses(
            parameters, build_pack([[Batch([tokens], 1 / labels)] for tokens in clients], model.layout)
        ).loss


def way_of(model):
    if model.layout.together == 0:
        return "batch by batch"
    how = "packed" if model.layout.packed else "padded"
    return how if model.layout.head is Head.LABELS or model.layout.classify else f"{how}, whole"


def written_ways():
    """How the page says that each family runs."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[2] for row in rows if len(row) == 3}


def check_lora(name, folder):
    """Train two clients side by side, and each alone with PEFT; then others beside them, and on disk."""
    with full_float64():
        base = build(name, torch.float64)
        config = lora(base)
        model = make_stacked(base, config, DATA)
        assert way_of(model) == written_ways()[name]
        assert model.adapted or name in WITHOUT_LAYERS, "gradient priority finds no layers to score"
        together = first_step(model, torch.float64)
        by_peft, before, loss = train_alone(base, config, DATA[0], lambda p: torch.optim.SGD(p, 0.05))
        assert float(together.loss[0]) == pytest.approx(loss[0], rel=1e-10)
        assert apart(together.bank.row(0), by_peft) <= 1e-10 and apart(by_peft, before) > 1e-6

        rows = {n: t[1:] for n, t in together.bank.tensors.items()}
        alone = losses(model, rows, [SHORT[1][0]])
        for other in (SHORT[0][1], BATCHES[0][1]):
            beside = losses(model, together.bank.tensors, [other, SHORT[1][0]])
            assert float(beside[1]) == pytest.approx(float(alone[0]), rel=1e-10)
        model.save(together.bank.row(1), folder)
        loaded = PeftModel.from_pretrained(base, str(folder)).eval()
        # PEFT saves and loads float32.
        assert float(alone[0]) == pytest.approx(float(loss_alone(loaded, SHORT[1][0])), rel=1e-5)
    model.model.float()
    in_float32 = first_step(model, torch.float32)
    assert apart(in_float32.bank.row(0), together.bank.row(0)) <= 1e-5
