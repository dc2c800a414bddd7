"""Dropout masks belong to (seed, round, client, batch): not to the pass, the neighbours, or the order."""

import pytest
import torch
from engine import apart, clients_data, hashed_dropout, make_stacked, moved, start_bank, steps_of
from peft import LoraConfig
from tiny import tiny_bert, tiny_bloom, tiny_distilbert, tiny_llama, tiny_roberta

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.model import dropout
from fedloom.model.bank import AdapterBank
from fedloom.model.dropout import Draws
from fedloom.model.packing import build_pack
from fedloom.model.wave import StackedDropout, Wave

CPU = torch.device("cpu")


@pytest.fixture(params=["generators", "hashes"])
def drawn(request, monkeypatch):
    """Masks as a CPU draws them, and as a GPU does."""
    if request.param == "hashes":
        monkeypatch.setattr(dropout, "_streams", hashed_dropout)


def keep(keys, tokens, probability=0.3, features=16, seed=1, real=None, rows=None):
    x = torch.empty(sum(tokens) if rows is None else rows, features, dtype=torch.float64)
    return Draws(seed, keys, tokens, real, CPU, len(x)).keep(x, probability)


def test_hashes_are_those_of_splitmix64():
    """The first numbers of the published generator for the seed 1234567."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    x = 1234567 + torch.arange(1, 4) * dropout._GOLDEN
    assert [word % 2**64 for word in dropout._split_mix(x).tolist()] == wanted


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5])
@pytest.mark.usefixtures("drawn")
def test_factors_have_mean_one_and_drop_their_share(probability):
    factors = keep([(0, 0, 0), (0, 1, 0)], [2000, 3000], probability, features=100)
    assert len(factors.unique()) == 2
    deviation = (probability / (1 - probability) / factors.numel()) ** 0.5
    assert float(factors.mean()) == pytest.approx(1.0, abs=4 * deviation)
    assert float((factors == 0).double().mean()) == pytest.approx(probability, abs=4 * deviation)


@pytest.mark.usefixtures("drawn")
def test_factors_of_neighbouring_numbers_are_independent():
    dropped = (keep([(0,)], [2000], 0.5, features=100) == 0).double() - 0.5
    for shift in range(1, 6):  # several decisions share a random word
        flat = dropped.flatten()
        assert abs(float((flat[shift:] * flat[:-shift]).mean())) < 0.25 * 4 / flat.numel() ** 0.5


@pytest.mark.usefixtures("drawn")
def test_a_run_draws_the_same_whoever_stands_beside_it():
    alone = keep([(0, 7, 2)], [5])
    among = keep([(0, 1, 0), (0, 7, 2), (0, 3, 1)], [3, 5, 4])
    last = keep([(0, 3, 1), (0, 7, 2)], [9, 5])
    assert torch.equal(among[3:8], alone) and torch.equal(last[9:], alone)


@pytest.mark.usefixtures("drawn")
def test_runs_of_odd_lengths_go_on_where_they_stopped_whoever_stands_beside_them():
    """Layer after layer, where a run's numbers do not fill its last word."""

    def layers(keys, counts):
        draws = Draws(1, keys, counts, None, CPU)
        return [draws.flat([n * width for n in counts], 0.3, torch.float64) for width in (3, 5, 7)]

    together, alone = layers([(0, 1), (0, 2), (0, 3)], [2, 5, 1]), layers([(0, 2)], [5])
    for width, among, one in zip((3, 5, 7), together, alone, strict=True):
        assert torch.equal(among[2 * width : 7 * width], one)
    assert not torch.equal(alone[0], alone[1][:15])


@pytest.mark.parametrize(
    "other", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)], ids=["round", "client", "batch", "prefix"]
)
@pytest.mark.usefixtures("drawn")
def test_another_round_client_or_batch_draws_another_mask(other):
    assert not torch.equal(keep([(0, 0, 0)], [20]), keep([other], [20]))


@pytest.mark.usefixtures("drawn")
def test_another_seed_draws_another_mask_and_the_same_seed_the_same():
    assert torch.equal(keep([(0,)], [20], seed=1), keep([(0,)], [20], seed=1))
    assert not torch.equal(keep([(0,)], [20], seed=1), keep([(0,)], [20], seed=2))


@pytest.mark.usefixtures("drawn")
def test_each_layer_draws_afresh():
    draws, x = Draws(1, [(0,)], [20], None, CPU), torch.empty(20, 16)
    assert not torch.equal(draws.keep(x, 0.3), draws.keep(x, 0.3))


@pytest.mark.usefixtures("drawn")
def test_pads_are_kept_and_cost_no_draw():
    real = torch.tensor([0, 1, 3, 4, 5])  # the third of six places is a pad
    padded = keep([(0, 0), (0, 1)], [2, 3], real=real, rows=6)
    assert torch.equal(padded[real], keep([(0, 0), (0, 1)], [2, 3]))
    assert torch.equal(padded[2], torch.ones(16))


@pytest.mark.usefixtures("drawn")
def test_the_head_draws_from_the_same_runs_for_its_labels():
    draws = Draws(1, [(0, 0), (0, 1)], [20, 30], None, CPU)
    of_labels = draws.for_labels([2, 3]).keep(torch.empty(5, 16, dtype=torch.float64), 0.3)
    assert torch.equal(of_labels, keep([(0, 0), (0, 1)], [2, 3]))


def test_a_base_models_dropout_draws_only_in_a_pass_that_asks_for_it():
    wave = Wave()
    layer, x = StackedDropout(0.5, wave), torch.ones(1, 4, 16, dtype=torch.float64)
    assert torch.equal(layer(x), x)
    with wave.through({}, (4,), draws=Draws(1, [(0,)], [4], None, CPU)):
        assert torch.equal(layer(x)[0], keep([(0,)], [4], 0.5))
    with wave.through({}, (4,)):
        assert torch.equal(layer(x), x)


DATA = clients_data((2, 1, 2), seed=4)
BASE_DROPOUT = {
    "bert": (tiny_bert, "hidden_dropout_prob", "attention_probs_dropout_prob", ["query", "value"]),
    "roberta": (tiny_roberta, "hidden_dropout_prob", "attention_probs_dropout_prob", ["query", "value"]),
    "distilbert": (tiny_distilbert, "dropout", "attention_dropout", ["q_lin", "v_lin"]),
}


def classifier(kind, hidden=0.1, attention=0.1):
    make, hidden_name, attention_name, targets = BASE_DROPOUT[kind]
    base = make(num_labels=3, **{hidden_name: hidden, attention_name: attention}).double()
    return base, LoraConfig(task_type="SEQ_CLS", r=2, lora_dropout=0.3, target_modules=targets)


def with_dropout(kind):
    """Models with a shared prefix, packed and padded, one without, and three with dropout of their own."""
    if kind in BASE_DROPOUT:
        return classifier(kind)
    if kind == "bloom":
        targets, base = ["query_key_value"], tiny_bloom()
    else:
        targets, base = ["q_proj", "down_proj"], tiny_llama(attention_dropout=0.2)
    return base.double(), LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.3, target_modules=targets)


def train(model, clients, wave_tokens=4096, dropout_seed=5, data=DATA):
    """Train some of the clients, in this order; returns their rows by client."""
    work = [steps_of(k, data[k], model.layout) for k in clients]
    rules = LocalRules(sgd(0.2), wave_tokens=wave_tokens, dropout_seed=dropout_seed)
    bank = train_locally(model, start_bank(model, len(clients)), work, rules).bank
    return {k: bank.row(i) for i, k in enumerate(clients)}


@pytest.mark.parametrize("kind", ["llama", "bloom", "padded", *BASE_DROPOUT])
def test_training_with_dropout_does_not_depend_on_the_pass(kind, full_precision, monkeypatch):
    if kind == "llama":  # one of them draws as on a GPU
        monkeypatch.setattr(dropout, "_streams", hashed_dropout)
    model = make_stacked(*with_dropout(kind), DATA, packed=False if kind == "padded" else None)
    assert model.layout.packed == (kind != "padded")
    assert (model.layout.shared > 0) == (kind in ("llama", "bloom"))
    together = train(model, [0, 1, 2])
    others = {
        "in small passes": train(model, [0, 1, 2], wave_tokens=40),
        "batch by batch": train(model, [0, 1, 2], wave_tokens=1),
        "in another order": train(model, [2, 0, 1]),
        "alone": train(model, [1]) | train(model, [2]),
    }
    without = train(model, [0, 1, 2], dropout_seed=None)
    another_seed = train(model, [0, 1, 2], dropout_seed=6)
    for k, row in together.items():
        assert moved(row, model.initial)
        assert apart(row, without[k]) > 1e-4 and apart(row, another_seed[k]) > 1e-4
        for how, rows in others.items():
            assert k not in rows or apart(rows[k], row) <= 1e-12, how


def losses(model, dropout_seed):
    pack = build_pack([steps_of(k, DATA[k], model.layout)[0] for k in range(3)], model.layout)
    with torch.no_grad():
        return model.losses(start_bank(model, 3).tensors, pack, dropout_seed).loss


@pytest.mark.parametrize("hidden, attention", [(0.1, 0.0), (0.0, 0.1)])
@pytest.mark.parametrize("kind", BASE_DROPOUT)
def test_a_base_models_own_dropout_is_on_in_training_and_off_in_evaluation(kind, hidden, attention):
    base, config = classifier(kind, hidden, attention)
    config.lora_dropout = 0.0
    model = make_stacked(base, config, DATA)
    plain = losses(make_stacked(*classifier(kind, 0.0, 0.0), DATA), None)
    assert torch.equal(losses(model, None), plain)
    trained = losses(model, 5)
    assert (trained - plain).abs().min() > 1e-4
    assert torch.equal(losses(model, 5), trained)
    assert (losses(model, 6) - trained).abs().min() > 1e-4
    assert torch.equal(losses(model, None), plain), "training left dropout on"


@pytest.mark.parametrize("kind", BASE_DROPOUT)
def test_generation_and_evaluation_after_training_know_no_dropout(kind):
    model = make_stacked(*classifier(kind), DATA)
    bank, ids = start_bank(model, 1), torch.tensor([[3, 7, 9, 20, 30, 40]])

    def logits():
        with model.as_clients(bank.tensors, [1]) as plain, torch.no_grad():
            return plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits

    before = logits()
    train(model, [0])
    assert torch.equal(logits(), before)


def test_dropout_averages_out():
    """The mean over many masks of a linear layer's adapter term is the term without dropout."""
    factors = torch.stack([keep([(round_, 0, 0)], [4], 0.3) for round_ in range(3000)])
    deviation = (0.3 / 0.7 / 3000) ** 0.5
    assert (factors.mean(0) - 1).abs().max() < 5 * deviation


def test_masks_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    keep([(0,)], [20])
    train(make_stacked(*classifier("bert"), DATA), [0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bank_of_copies_trains_apart_under_dropout():
    """Two clients with the same data and different keys draw different masks, with the same key the same."""
    model = make_stacked(*with_dropout("llama"), DATA)
    keyed = [steps_of(k, DATA[0], model.layout) for k in (0, 1, 0)]
    rules = LocalRules(sgd(0.2), dropout_seed=5)
    bank: AdapterBank = train_locally(model, start_bank(model, 3), keyed, rules).bank
    assert apart(bank.row(0), bank.row(1)) > 1e-4
    assert apart(bank.row(0), bank.row(2)) < 1e-12
