"""The stacked model: adapters that PEFT reads, plain models for generation, and no work for nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from engine import apart, clients_data, make_stacked, start_bank, steps_of
from peft import LoraConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig
from tiny import tiny_bert, tiny_bloom, tiny_distilbert, tiny_gpt2, tiny_llama, tiny_roberta

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.model.adapters.prompts import virtual_tokens
from fedloom.model.packing import build_pack
from fedloom.model.stacked import StackedModel

DATA = clients_data((2, 2))
BASES = {
    "llama": lambda: tiny_llama(),
    "bloom": lambda: tiny_bloom(),
    "gpt2": lambda: tiny_gpt2(),
    "llama classifier": lambda: tiny_llama(num_labels=3),
    "roberta": lambda: tiny_roberta(num_labels=3),
    "bert": lambda: tiny_bert(num_labels=3),
    "distilbert": lambda: tiny_distilbert(num_labels=3),
}
TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "llama classifier": ["q_proj", "v_proj"],
    "bloom": ["query_key_value"],
    "gpt2": ["c_attn"],
    "roberta": ["query"],
    "bert": ["query"],
    "distilbert": ["q_lin"],
}
CLASSIFIERS = {"llama classifier", "roberta", "bert", "distilbert"}


def lora(kind, **options):
    task = "SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM"
    return LoraConfig(
        task_type=task, r=2, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2", **options
    )


def adapter(peft, kind):
    task = "SEQ_CLS" if kind in CLASSIFIERS else "CAUSAL_LM"
    sizes = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
    if peft == "lora":
        return lora(kind)
    if peft == "prompt-tuning":
        return PromptTuningConfig(task_type=task, num_virtual_tokens=5, **sizes)
    return PromptEncoderConfig(task_type=task, num_virtual_tokens=4, encoder_hidden_size=24, **sizes)


def trained(base, config):
    """A stacked model, and a bank of two clients whose adapters have left their start, and each other."""
    model = make_stacked(base, config, DATA)
    work = [steps_of(k, client, model.layout) for k, client in enumerate(DATA)]
    bank = train_locally(model, start_bank(model, 2, torch.float32), work, LocalRules(sgd(0.5))).bank
    assert apart(bank.row(0), bank.row(1)) > 1e-3
    assert all((bank.tensors[name][1] != t).any() for name, t in model.initial.items()), (
        "something stood still"
    )
    return model, bank


def mean_loss(plain, sequences, classify, virtual=0):
    """What an ordinary model, given one sequence at a time, says of some sequences."""
    losses = []
    for s in sequences:
        ids = torch.tensor([s.ids])
        logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        if classify:
            losses.append(F.cross_entropy(logits[None], torch.tensor([s.label]))[None])
        else:
            predicted = logits[virtual + s.answer_start - 1 : -1]
            losses.append(F.cross_entropy(predicted, ids[0, s.answer_start :], reduction="none"))
    return float(torch.cat(losses).mean())


def stacked_loss(model, row, client, batch):
    """What the stacked model says of the same."""
    step = [steps_of(client, [[batch]], model.layout)[0]]
    with torch.no_grad():
        return float(
            model.losses({n: t[None] for n, t in row.items()}, build_pack(step, model.layout)).loss[0]
        )


SAVED = [("lora", kind) for kind in BASES] + [
    (peft, kind) for peft in ("prompt-tuning", "p-tuning") for kind in ("llama", "roberta", "distilbert")
]


@pytest.mark.parametrize("peft, kind", SAVED, ids=["-".join(pair) for pair in SAVED])
def test_a_saved_row_is_an_ordinary_peft_adapter(peft, kind, tmp_path):
    base = BASES[kind]()
    model, bank = trained(base, adapter(peft, kind))
    for k in (0, 1):
        model.save(bank.row(k), tmp_path / str(k))
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / str(k))).eval()
        batch = DATA[1 - k][0][0]
        with torch.no_grad():
            theirs = mean_loss(loaded, batch, kind in CLASSIFIERS, model.layout.virtual)
        ours = stacked_loss(model, bank.row(k), k, batch)
        start = stacked_loss(model, model.initial, k, batch)
        assert ours == pytest.approx(theirs, rel=1e-4) and abs(ours - start) > 1e-3
    assert {p.name for p in (tmp_path / "0").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("kind", BASES)
def test_in_a_batch_each_clients_rows_go_through_its_own_adapter(kind, tmp_path):
    base = BASES[kind]()
    model, bank = trained(base, lora(kind))
    # Two rows, of which one has two pads.
    ids = torch.tensor(
        [[3, 7, 9, 20, 30, 40], [3, 7, 9, 50, base.config.pad_token_id, base.config.pad_token_id]]
    )
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    # The first client has both rows, the second the second alone.
    with model.as_clients(bank.tensors, [2, 1]) as plain, torch.no_grad():
        found = plain(input_ids=ids[[0, 1, 1]], attention_mask=mask[[0, 1, 1]]).logits
        assert type(plain) is type(base)
    for k, rows in ((0, [0, 1]), (1, [1])):
        model.save(bank.row(k), tmp_path / str(k))
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / str(k))).eval()
        own = found[:2] if k == 0 else found[2:]
        with torch.no_grad():
            expected = loaded(input_ids=ids[rows], attention_mask=mask[rows]).logits
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    assert (found[1] - found[2]).abs().max() > 1e-2


def test_transformers_own_loop_generates_with_an_adapter(tmp_path):
    base = tiny_llama()
    model, bank = trained(base, lora("llama"))
    model.save(bank.row(1), tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    ids = torch.tensor([[3, 7, 9, 20]])
    options = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
    }
    with model.as_clients(bank.rows([1]).tensors, [1]) as plain:
        ours = plain.generate(ids, **options)
    assert torch.equal(ours, loaded.generate(input_ids=ids, **options))


@pytest.mark.parametrize("peft", ["prompt-tuning", "p-tuning"])
def test_a_clients_prompt_before_the_plain_model_gives_the_same_loss(peft):
    base = tiny_llama()
    model, bank = trained(base, adapter(peft, "llama"))
    (prompt,), (s, *_) = virtual_tokens(bank.rows([1]).tensors), DATA[0][0][0]
    embedded = base.get_input_embeddings()(torch.tensor(s.ids))
    with torch.no_grad():
        logits = base(inputs_embeds=torch.cat([prompt, embedded])[None]).logits[0, model.layout.virtual :]
    by_hand = F.cross_entropy(logits[s.answer_start - 1 : -1], torch.tensor(s.ids[s.answer_start :]))
    assert stacked_loss(model, bank.row(1), 1, [s]) == pytest.approx(float(by_hand), rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "roberta", "bert", "bloom"])
def test_outside_a_pass_the_model_is_its_frozen_base(kind):
    base = BASES[kind]()
    model, _ = trained(base, lora(kind))
    ids = torch.tensor([[3, 7, 9, 20, 30, 40]])
    assert not any(p.requires_grad for p in model.model.parameters())
    with torch.no_grad():
        ours, theirs = model.model(input_ids=ids).logits, base(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_first_adapter_depends_on_the_seed_alone():
    torch.manual_seed(123)
    rows = [StackedModel(tiny_llama(num_hidden_layers=1), lora("llama"), seed=s).initial for s in (1, 1, 2)]
    assert apart(rows[1], rows[0]) == 0 and apart(rows[2], rows[0]) > 0.1


# No work for nothing


def count_rows(module):
    """The rows, all leading axes together, of every call of a module from here on."""
    seen = []
    module.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].numel() // inputs[0].shape[-1]))
    return seen


@pytest.mark.parametrize("kind", ["llama", "bloom", "gpt2"])
def test_logits_are_made_where_there_is_a_label_and_nowhere_else(kind):
    model = make_stacked(BASES[kind](), lora(kind), DATA)
    rows = count_rows(model.model.lm_head)
    pack = build_pack([steps_of(k, DATA[k], model.layout)[0] for k in range(2)], model.layout)
    model.losses(start_bank(model, 2, torch.float32).tensors, pack)
    assert rows == [len(pack.targets)] and 0 < len(pack.targets) < pack.ids.numel() / 2


def test_a_heads_layers_see_one_row_per_sequence():
    model = make_stacked(tiny_roberta(num_labels=3), lora("roberta"), DATA)
    rows = count_rows(model.model.classifier.dense)
    pack = build_pack([steps_of(k, DATA[k], model.layout)[0] for k in range(2)], model.layout)
    model.losses(start_bank(model, 2, torch.float32).tensors, pack)
    assert rows == [len(pack.starts)]


def test_the_trunk_sees_no_pad_and_a_shared_beginning_once_per_client():
    model = make_stacked(tiny_llama(), lora("llama"), DATA)
    rows = count_rows(model.model.model.layers[0].mlp)
    batches = [client[0] for client in DATA]
    pack = build_pack([steps_of(k, DATA[k], model.layout)[0] for k in range(2)], model.layout)
    model.losses(start_bank(model, 2, torch.float32).tensors, pack)
    shared = model.layout.prefix
    own = [len(s.ids) - shared for client in batches for batch in client for s in batch]
    assert shared >= 3 and rows == [2 * shared + sum(own)]


@pytest.mark.parametrize("kind", ["llama", "bloom", "roberta"])
def test_there_is_no_graph_below_the_lowest_layer_that_trains(kind):
    model = make_stacked(BASES[kind](), lora(kind, layers_to_transform=[1]), DATA)
    layers = {
        "llama": lambda m: m.model.layers,
        "bloom": lambda m: m.transformer.h,
        "roberta": lambda m: m.roberta.encoder.layer,
    }[kind](model.model)
    graph = []
    for layer in layers:
        layer.register_forward_hook(
            lambda m, i, out: graph.append((out[0] if isinstance(out, tuple) else out).requires_grad)
        )
    leaves = {n: t.requires_grad_() for n, t in start_bank(model, 2, torch.float32).tensors.items()}
    pack = build_pack([steps_of(k, DATA[k], model.layout)[0] for k in range(2)], model.layout)
    out = model.losses(leaves, pack)
    assert graph == [False, True]
    assert torch.autograd.grad(out.loss.sum(), list(leaves.values()))


@pytest.mark.parametrize("kind", BASES)
def test_sequences_are_packed_where_the_architecture_allows_it(kind):
    model = make_stacked(BASES[kind](), lora(kind))
    assert model.layout.packed
    assert model.layout.causal == (kind not in {"roberta", "bert", "distilbert"})
    assert model.layout.classify == (kind in CLASSIFIERS)


@pytest.mark.parametrize("peft, kind", [("lora", k) for k in BASES if k != "bloom"] + [("p-tuning", "llama")])
def test_packed_and_padded_give_the_same_losses(peft, kind, full_precision):
    losses = []
    for packed in (True, False):
        model = make_stacked(BASES[kind]().double(), adapter(peft, kind), DATA, packed=packed)
        pack = build_pack([steps_of(k, DATA[k], model.layout)[0] for k in range(2)], model.layout)
        with torch.no_grad():
            losses.append(model.losses(start_bank(model, 2).tensors, pack))
    assert model.layout.packed is False
    torch.testing.assert_close(losses[0].loss, losses[1].loss, rtol=1e-12, atol=1e-12)
    assert torch.equal(losses[0].correct, losses[1].correct) and torch.equal(
        losses[0].labels, losses[1].labels
    )


def operations_back_from(t):
    """Names of all operations of the backward pass from ``t``."""
    found, todo = set(), [t.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [before for before, _ in node.next_functions]
    return {node.name() for node in found}


@pytest.mark.parametrize("kind", ["llama", "bert", "distilbert"])
def test_no_gradient_is_copied_for_what_is_added_in_place(kind):
    model = make_stacked(BASES[kind](), lora(kind), DATA)
    parameters = {name: t.requires_grad_() for name, t in start_bank(model, 2, torch.float32).tensors.items()}
    batches = [[b for step in steps_of(k, own, model.layout) for b in step] for k, own in enumerate(DATA)]
    operations = operations_back_from(model.losses(parameters, build_pack(batches, model.layout)).loss)
    assert any("AddLowRank" in name for name in operations)
    assert not any("CopySlices" in name for name in operations)
