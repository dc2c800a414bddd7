"""DPO (Rafailov et al. 2023, arXiv:2305.18290): TRL's loss, and clients as each alone with PEFT."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from engine import BEGINNING, apart, clients_data, make_stacked, moved, start_bank, steps_of
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import tiny_bloom, tiny_gpt2, tiny_llama, tiny_tokenizer

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.client.steps import mean_step
from fedloom.data.encode import Tokens
from fedloom.evaluation.evaluate import validate_rows
from fedloom.evaluation.preferred import preference_scores
from fedloom.evaluation.reference import with_references
from fedloom.model.adapters.supported import saved_name
from fedloom.model.bank import AdapterBank
from fedloom.model.packing import build_pack

BETA = 0.3
STEPS = (3, 1, 2)  # of each client
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
BLOOM = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["query_key_value"])
DROPPING = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["c_attn"], lora_dropout=0.5)
PROMPT = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)

pytestmark = pytest.mark.usefixtures("full_precision")


def random_preference(rng, longest=9):
    """A beginning that all share, a question, and two answers of unlike lengths; the chosen in two turns."""
    prompt = BEGINNING + [rng.randrange(10, 90) for _ in range(rng.randrange(1, 6))]
    chosen, rejected = ([rng.randrange(10, 90) for _ in range(rng.randrange(2, longest))] for _ in range(2))
    n = len(prompt)
    turns = ((n, n + 1), (n + len(chosen) - 1, n + len(chosen))) if len(chosen) > 4 else ()
    return Tokens(prompt + chosen, n, -1, answers=turns, rejected=Tokens(prompt + rejected, n, -1))


def log_probability(model, sequences, virtual=0):
    """Sums over the tokens of the answers, of a plain model on padded rows."""
    longest = max(len(s.ids) for s in sequences)
    ids = torch.tensor([s.ids + [0] * (longest - len(s.ids)) for s in sequences])
    mask = torch.tensor([[1] * len(s.ids) + [0] * (longest - len(s.ids)) for s in sequences])
    answers = torch.zeros_like(ids)
    for row, s in enumerate(sequences):
        for first, end in s.spans:
            answers[row, first:end] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits[:, virtual:-1]
    each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (each * answers[:, 1:]).sum(1)


def sigmoid_loss(model, pairs, virtual=0):
    """TRL's `loss_type="sigmoid"`, the adapter switched off for the reference; one loss per pair."""
    sides = [*pairs, *(pair.rejected for pair in pairs)]
    chosen, rejected = log_probability(model, sides, virtual).chunk(2)
    with torch.no_grad(), model.disable_adapter():
        ref_chosen, ref_rejected = log_probability(model, sides).chunk(2)
    margins = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -F.logsigmoid(BETA * margins), margins


def alone_with_peft(base, config, steps):
    """One client with PEFT and torch.optim: its adapter, as it was before, and the losses of its steps."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(config)).to(base.dtype).eval()
    named = {saved_name(n, config): p for n, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in named.items()}
    optimiser, losses = torch.optim.SGD(named.values(), 0.05), []
    for batches in steps:
        optimiser.zero_grad()
        pairs = [pair for batch in batches for pair in batch]
        loss = sigmoid_loss(model, pairs, getattr(config, "num_virtual_tokens", 0))[0].mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return {name: p.detach() for name, p in named.items()}, before, losses


def compared(model, data):
    """The clients' data with the base's word on each preference, as a run adds it."""
    flat = [pair for client in data for step in client for batch in step for pair in batch]
    (known,) = with_references(model, [flat], 64)
    known = iter(known)
    return [[[[next(known) for _ in batch] for batch in step] for step in client] for client in data]


def train(base, config, data, packed=None, **rules):
    model = make_stacked(base, config, data, packed)
    model.beta = BETA
    work = [steps_of(k, client, model.layout) for k, client in enumerate(compared(model, data))]
    bank = start_bank(model, len(data), base.dtype)
    return train_locally(model, bank, work, LocalRules(sgd(0.05), **rules))


@pytest.mark.parametrize(
    "make, config, packed, dtype, tolerance",
    [
        (tiny_llama, LORA, None, torch.float64, 1e-10),
        (tiny_llama, LORA, None, torch.float32, 1e-5),
        (tiny_llama, LORA, False, torch.float64, 1e-10),
        (tiny_llama, PROMPT, None, torch.float64, 1e-10),
        (tiny_bloom, BLOOM, None, torch.float64, 1e-10),
    ],
)
def test_stacked_clients_equal_each_alone_with_peft(make, config, packed, dtype, tolerance):
    base, data = make().to(dtype), clients_data(STEPS, sequence=random_preference)
    together = train(base, config, data, packed)
    for k, steps in enumerate(data):
        alone, before, losses = alone_with_peft(base, config, steps)
        assert moved(alone, before)
        assert apart(together.bank.row(k), alone) <= tolerance
        assert float(together.loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert together.labels[k] == sum(len(batch) for step in steps for batch in step)


def test_the_loss_is_that_of_trls_own_trainer(tmp_path):
    """Its trainer on the same ids: it wants a data set of texts to begin with, and gets these instead."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    base, pairs = tiny_llama(), [random_preference(random.Random(i)) for i in range(9)]
    words = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    options = trl.DPOConfig(str(tmp_path), beta=BETA, report_to=[], use_cpu=True, bf16=False)
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(base),
        args=options,
        train_dataset=words,
        processing_class=tiny_tokenizer(),
        peft_config=copy.deepcopy(LORA),
    )
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    sides = [*pairs, *(pair.rejected for pair in pairs)]
    longest = max(len(side.ids) for side in sides)
    batch = {
        "input_ids": torch.tensor([side.ids + [0] * (longest - len(side.ids)) for side in sides]),
        "attention_mask": torch.tensor(
            [[i < len(side.ids) for i in range(longest)] for side in sides]
        ).long(),
        "completion_mask": torch.tensor(
            [[any(a <= i < b for a, b in side.spans) for i in range(longest)] for side in sides]
        ).long(),
    }
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model.eval(), batch))
    named = {n.replace(".default.", "."): p for n, p in trainer.model.named_parameters()}
    row = {saved_name(n, LORA): p.detach() for n, p in named.items() if "lora_" in n}
    model = make_stacked(base, LORA)
    model.beta = BETA
    (known,) = with_references(model, [pairs], 64)
    pack = build_pack([mean_step([known], model.layout, [()])], model.layout)
    assert float(model.losses(AdapterBank.repeat(row, 1).tensors, pack).loss[0]) == pytest.approx(
        theirs, abs=1e-5
    )


@pytest.mark.parametrize("packed", [None, False])
def test_the_loss_is_that_of_trl(packed):
    base, pairs = tiny_llama(), [random_preference(random.Random(i)) for i in range(9)]
    torch.manual_seed(1)
    alone = get_peft_model(copy.deepcopy(base), copy.deepcopy(LORA)).eval()
    with torch.no_grad():
        for name, p in alone.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
        losses, margins = sigmoid_loss(alone, pairs)
    assert losses.std() > 0.1 and 0 < (margins > 0).sum() < len(pairs)
    row = {saved_name(n, LORA): p.detach() for n, p in alone.named_parameters() if p.requires_grad}

    model = make_stacked(base, LORA, packed=packed)
    model.beta = BETA
    (known,) = with_references(model, [pairs], 64)
    pack = build_pack([mean_step([known], model.layout, [()])], model.layout)
    out = model.losses(AdapterBank.repeat(row, 1).tensors, pack)
    assert float(out.loss[0]) == pytest.approx(float(losses.mean()), abs=1e-5)
    assert out.margins.tolist() == pytest.approx(margins.tolist(), abs=1e-4)

    judged = validate_rows(model, AdapterBank.repeat(row, 2), [known, known[:4]], 40)
    assert judged[0].loss == pytest.approx(float(losses.mean()), abs=1e-5)
    assert judged[0].accuracy == int((margins > 0).sum()) / len(pairs)
    assert judged[1].loss == pytest.approx(float(losses[:4].mean()), abs=1e-5)

    of_base, scores = preference_scores(model, AdapterBank.repeat(row, 1), 1, pairs, 40)
    assert scores["accuracy"] == judged[0].accuracy and scores["low"] < scores["accuracy"] < scores["high"]
    assert scores["loss"] == pytest.approx(judged[0].loss, abs=1e-5)
    assert scores["margin"] == pytest.approx(BETA * float(margins.mean()), abs=1e-4)
    with torch.no_grad():
        ratios = log_probability(alone, pairs) - log_probability(alone, [pair.rejected for pair in pairs])
    assert scores["logp_margin"] == pytest.approx(float(ratios.mean()), abs=1e-4)
    assert scores["logp_accuracy"] == int((ratios > 0).sum()) / len(pairs)
    base_ratios = ratios - margins
    assert of_base["logp_margin"] == pytest.approx(float(base_ratios.mean()), abs=1e-4)
    assert of_base["logp_accuracy"] == int((base_ratios > 0).sum()) / len(pairs)
    assert (of_base["accuracy"], of_base["margin"]) == (0, 0)


def test_neither_neighbours_nor_the_size_of_a_pass_change_anything():
    base, data = tiny_llama().double(), clients_data(STEPS, sequence=random_preference)
    together = train(base, LORA, data, dropout_seed=3)
    for wave_tokens in (1, 60):
        in_pieces = train(base, LORA, data, dropout_seed=3, wave_tokens=wave_tokens)
        assert all(apart(in_pieces.bank.row(k), together.bank.row(k)) <= 1e-12 for k in range(len(data)))
    first = train(base, LORA, data[:1], dropout_seed=3)
    assert apart(first.bank.row(0), together.bank.row(0)) <= 1e-12


@pytest.mark.parametrize("config", [DROPPING, PROMPT])
def test_the_reference_is_the_base_without_adapter_or_dropout(config):
    base = tiny_gpt2(attn_pdrop=0.5, resid_pdrop=0.5).double()
    pairs = [random_preference(random.Random(i)) for i in range(6)]
    with torch.no_grad():
        chosen = log_probability(base, pairs)
        rejected = log_probability(base, [pair.rejected for pair in pairs])
    model = make_stacked(base, config)
    both, again, none = with_references(model, [pairs, pairs, []], 30)
    assert [pair.reference for pair in both] == pytest.approx((chosen - rejected).tolist(), rel=1e-10)
    assert again is both and none == []
    assert with_references(model, [both], 30) == [both]


def test_a_model_that_has_learnt_nothing_prefers_nothing():
    base, pairs = tiny_llama(), [random_preference(random.Random(i)) for i in range(20)]
    model = make_stacked(base, LORA)
    (known,) = with_references(model, [pairs], 200)
    (judged,) = validate_rows(model, start_bank(model, 1, torch.float32), [known], 16)
    assert judged.accuracy == 0 and judged.loss == pytest.approx(0.693147, abs=1e-5)


def test_preferences_without_a_reference_or_among_others_are_no_pass():
    base, pair = tiny_llama(), random_preference(random.Random(0))
    model = make_stacked(base, LORA)
    pack = build_pack([mean_step([[pair]], model.layout, [()])], model.layout)
    assert torch.isnan(model.losses({}, pack).loss).all()
    with pytest.raises(ValueError, match="cannot share a pass"):
        build_pack([mean_step([[pair, pair.rejected]], model.layout, [()])], model.layout)
