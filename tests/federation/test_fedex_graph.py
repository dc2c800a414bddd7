"""FedEx-LoRA without a server: each peer's residual, against the dense means of what peers compute."""

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from graph_rounds import PEERS, alone, graph, random_bank, ring, uniform
from peft import LoraConfig, PeftModel
from peft_alone import reference_loss
from tiny import tiny_llama

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import adam
from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.consensus import consensus, mean_adapter
from fedloom.federation.lora_aggregations.fedex import fedex
from fedloom.federation.peers import PeerState, Trained, mix, peer_round
from fedloom.federation.train_factors.both import everything
from fedloom.model import blocks
from fedloom.model.adapters.folding import folded, unchanged
from fedloom.model.adapters.products import DOWN, UP, lora_pairs
from fedloom.model.bank import AdapterBank
from fedloom.model.packing import build_pack

A, B, P, Q = "q.lora_A.weight", "q.lora_B.weight", "q" + UP, "q" + DOWN
ALL_RANKS = 4  # of a module of 4 by 6


def with_residual(bank, rank):
    """Peers' factors of rank 2 and a head, and a residual of a capped rank, which begins as 0."""
    begun = unchanged(bank.row(0), rank)
    return AdapterBank(bank.tensors | AdapterBank.repeat(begun, bank.clients).tensors)


def products(bank):
    """What each peer adds to the base, dense."""
    t = bank.tensors
    return t[B] @ t[A] + t[P] @ t[Q]


def learning(seed=1, same=False, one_a=False):
    """Training that moves factors and head by numbers drawn anew in every round, and no residual."""

    def train(state, who):
        drawn = random_bank(state.bank.clients, 10 * seed + state.round).tensors
        moving = everything(state.bank.tensors, state.round)
        assert moving == drawn.keys()
        for name in drawn if same else [A] if one_a else []:
            drawn[name] = drawn[name][:1].expand_as(drawn[name])
        by = {name: t * who.view(-1, *[1] * (t.ndim - 1)) for name, t in drawn.items()}
        bank = state.bank.map(torch.clone)
        bank.tensors.update({name: bank.tensors[name] + t for name, t in by.items()})
        count = torch.ones(len(who), dtype=torch.long)
        return Trained(bank, {}, count.double(), count, count, count)

    return train


def rounds_of(matrix, rank, train, rounds=3, bank=None):
    """The bank before each round's mixing and after it, begun with equal peers."""
    each = fedex(aggregator=weighted_mean, residual_rank=rank)
    algorithm = Algorithm(1.0, aggregator=each.among_peers)
    first = AdapterBank.repeat(random_bank().row(0), matrix.peers) if bank is None else bank
    now = PeerState(0, with_residual(first, rank), {})
    for _ in range(rounds):
        now, report = peer_round(now, train, matrix, set(now.bank.tensors), algorithm)
        assert not report.left_out
        yield report.trained.bank, now.bank


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("matrix", [ring(), uniform(), graph([(0, 1), (2, 3)], 0.5), graph([(0, 1)], 0.3)])
def test_what_peers_compute_is_mixed_exactly_on_any_graph(matrix):
    """Dense, over three rounds: M_i ← Σ_j W_ij M_j, which the mean of factors alone is not."""
    W = matrix.rows(range(PEERS))
    for trained, after in rounds_of(matrix, ALL_RANKS, learning()):
        close(products(after), torch.einsum("ij,jod->iod", W, products(trained)))
        factors = mix(trained, W, {A, B, "score.weight"}).tensors
        for name in (A, B, "score.weight"):
            close(after.tensors[name], factors[name])
    lost = products(after) - factors[B] @ factors[A]
    assert torch.linalg.matrix_norm(lost).max() > 0.1, "without a residual this is lost"


@pytest.mark.parametrize("case", [{"same": True}, {"one_a": True}])
def test_where_factors_suffice_there_is_no_residual(case):
    """Equal peers, or one A for all, as DFL-LoRA has it: both factors of the residual stay 0."""
    for _, after in rounds_of(ring(), 3, learning(**case)):
        assert max(after.tensors[P].abs().max(), after.tensors[Q].abs().max()) < 1e-7


def test_a_peer_that_hears_nobody_keeps_what_it_has():
    for trained, after in rounds_of(alone(), 3, learning()):
        assert all(torch.equal(t, trained.tensors[name]) for name, t in after.tensors.items())


@pytest.mark.parametrize("rank", [1, 3, ALL_RANKS])
def test_on_the_complete_graph_all_peers_have_what_a_server_gives(rank):
    """FedEx-LoRA with a server and equal weights, whose capped residual is that of every peer."""
    server, base = random_bank().row(0), unchanged(random_bank().row(0), rank)
    by_server = fedex(aggregator=weighted_mean, residual_rank=rank)
    equal = torch.full((PEERS,), 1 / PEERS, dtype=torch.float64)
    for trained, after in rounds_of(uniform(), rank, learning()):
        deltas = AdapterBank({name: trained.tensors[name] - t for name, t in server.items()})
        change = by_server(Changes(server, deltas, equal, lora_pairs(server)))
        server, base = {name: t + change[name] for name, t in server.items()}, folded(base, change)
        for name, t in server.items():
            close(after.tensors[name], t.expand_as(after.tensors[name]))
        whole = server[B] @ server[A] + base[P] @ base[Q]
        close(products(after), whole.expand(PEERS, 4, 6))
    assert torch.linalg.matrix_norm(base[P] @ base[Q]) > 0.1


def test_a_capped_residual_is_the_nearest_of_its_rank():
    ((trained, after),) = rounds_of(ring(), 1, learning(), rounds=1)
    mean = torch.einsum("ij,jod->iod", ring().rows(range(PEERS)), products(trained))
    U, S, Vh = torch.linalg.svd(mean - after.tensors[B] @ after.tensors[A])
    close(after.tensors[P] @ after.tensors[Q], U[..., :1] * S[:, None, :1] @ Vh[..., :1, :])


def test_how_far_peers_are_apart_and_their_mean_are_of_products():
    *_, (trained, after) = rounds_of(ring(), ALL_RANKS, learning())
    for bank in (trained, after):
        dense = products(bank)
        away = torch.linalg.matrix_norm(dense - dense.mean(0)).mean()
        found = consensus(bank, {}, ["q"])
        assert found.error == pytest.approx(float(away), rel=1e-10)
        assert found.relative == pytest.approx(float(away / torch.linalg.matrix_norm(dense.mean(0))))
        close(products(AdapterBank.repeat(mean_adapter(bank, PEERS), 1))[0], dense.mean(0))


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(("rslora", "in_blocks"), [(False, False), (True, True)])
def test_a_pass_has_each_peers_residual_and_peft_loads_it(tmp_path, monkeypatch, rslora, in_blocks):
    """Training is that on a base with the residual in its weights, which dropout, LoRA's alone, leaves."""
    monkeypatch.setattr(blocks, "pay", lambda device, lengths: in_blocks)  # as on a GPU
    data = clients_data((2, 2))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, lora_dropout=0.3, use_rslora=rslora)
    model, draws = make_stacked(tiny_llama().double(), config, data), torch.Generator().manual_seed(3)
    residuals = AdapterBank(
        {
            name: torch.randn((2, *t.shape), generator=draws, dtype=torch.float64) / 10
            for name, t in unchanged(model.initial, rank=3).items()
        }
    )
    work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]
    rules = LocalRules(adam(0.05), dropout_seed=1)
    trained = train_locally(model, start_bank(model, 2), work, rules, resting=residuals.tensors)
    peers = AdapterBank(trained.bank.tensors | residuals.tensors)
    packs = build_pack([client[0] for client in work], model.layout)
    losses = model.losses(peers.tensors, packs).loss
    for peer in (0, 1):
        row = residuals.row(peer)
        model.fold({n.removesuffix(UP): t @ row[n.replace(UP, DOWN)] for n, t in row.items() if UP in n})
        one = train_locally(model, start_bank(model, 1), [work[peer]], rules).bank.row(0)
        model.fold({})
        for name, t in one.items():
            close(trained.bank.tensors[name][peer], t)
        model.save(peers.row(peer), tmp_path / str(peer))
        saved = PeftModel.from_pretrained(tiny_llama().double(), tmp_path / str(peer)).merge_and_unload()
        assert float(losses[peer]) == pytest.approx(
            float(reference_loss(saved, data[peer][0], False, saved.config.pad_token_id, 0)), rel=1e-6
        )
