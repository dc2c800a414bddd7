"""Ravan: small matrices with scales between fixed factors, against their dense formula."""

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from graph_rounds import going, ring, uniform
from peft import LoraConfig, PeftModel
from tiny import tiny_llama

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import sgd
from fedloom.client.work import ClientWork
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.consensus import consensus
from fedloom.federation.lora_aggregations.ravan import ravan
from fedloom.federation.peers import PeerState, peer_round
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.train_factors.heads import heads
from fedloom.model.adapters.square import as_lora, with_heads
from fedloom.model.bank import AdapterBank
from fedloom.model.packing import build_pack
from fedloom.runtimes.in_process import run_clients, train_peers

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"])
LR, STEPS, ROUNDS = 0.5, 3, 2
DATA = clients_data((ROUNDS * STEPS, ROUNDS * STEPS))

pytestmark = pytest.mark.usefixtures("full_precision")


def close(found, wanted, atol=1e-10):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=atol)


def parts(row, module):
    return [row[f"{module}.lora_{part}.weight"] for part in "BRSA"]


def modules(row):
    return [name.removesuffix(".lora_R.weight") for name in row if name.endswith(".lora_R.weight")]


@pytest.fixture(scope="module")
def model():
    made = make_stacked(tiny_llama().double(), LORA, DATA)
    made.initial = with_heads(start_bank(made, 1).row(0), seed=3, heads=2)
    return made


AGGREGATION = ravan(2.0, aggregator=weighted_mean)
ALGORITHM = Algorithm(LR, aggregator=AGGREGATION.aggregator, trains=heads(), refactoring=AGGREGATION)


def work_of(model, round_, examples=(1, 2)):
    """What each of two clients does in a round."""
    here = slice(round_ * STEPS, (round_ + 1) * STEPS)
    return [ClientWork(k, steps_of(k, DATA[k], model.layout)[here], examples[k]) for k in (0, 1)]


@pytest.fixture(scope="module")
def states(model):
    return with_server(model)


def with_server(model, examples=(1, 2)):
    def train(round_, who, trained, rest, received):
        work = work_of(model, round_, examples)
        return run_clients(model, trained, work, LocalRules(sgd(LR)), ALGORITHM, frozen=rest)

    found = [initial_state(model.initial, ALGORITHM)]
    for _ in range(ROUNDS):
        state, report = federated_round(found[-1], [0, 1], train, ALGORITHM)
        found.append(state)
        per_module = 2 * 2 * 2 + 2  # two matrices of 2 by 2, and two scales
        assert report.bytes_up == report.bytes_down == 2 * 8 * per_module * len(modules(state.adapter))
    return found


def test_a_run_begins_with_orthonormal_factors_and_a_change_of_nothing(model):
    again, other = (with_heads(model.initial, seed=seed, heads=2) for seed in (3, 4))
    for module in modules(model.initial):
        B, R, S, A = parts(model.initial, module)
        close(B.T @ B, torch.eye(4).double())
        close(A @ A.T, torch.eye(4).double())
        assert not R.any() and (S == 1).all()
        assert torch.equal(parts(again, module)[0], B) and not torch.equal(parts(other, module)[0], B)


def dense(model, row, client, round_):
    """A client's products s_i H_i after a round, by autograd through W_0 + s Σ s_i B_i H_i A_i."""
    names = [name for name in row if ".lora_R." in name or ".lora_S." in name]
    now = {name: row[name].clone() for name in names}
    for step in steps_of(client, DATA[client], model.layout)[round_ * STEPS : (round_ + 1) * STEPS]:
        leaves = {name: t.clone().requires_grad_() for name, t in now.items()}
        whole = {}
        for module in modules(row):
            B, R, S, A = parts(row | leaves, module)
            change = sum(S[i] * B[:, 2 * i : 2 * i + 2] @ R[i] @ A[2 * i : 2 * i + 2] for i in (0, 1))
            # LoRA of full rank, A = I, scaled by alpha / r = 1.
            whole[f"{module}.lora_A.weight"] = torch.eye(A.shape[1]).double()[None]
            whole[f"{module}.lora_B.weight"] = change[None]
        loss = model.losses(whole, build_pack([step], model.layout)).loss[0]
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        now = {name: t - LR * g for (name, t), g in zip(now.items(), gradients, strict=True)}
    assert round_ == 0 or any((now[name] - 1).abs().max() > 1e-8 for name in now if ".lora_S." in name)
    return {m: now[f"{m}.lora_S.weight"][:, None, None] * now[f"{m}.lora_R.weight"] for m in modules(row)}


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_round_is_the_mean_of_the_dense_formulas_products(model, states, round_):
    before, after = states[round_].adapter, states[round_ + 1].adapter
    alone = [dense(model, before, client, round_) for client in (0, 1)]
    for module in modules(before):
        B, R, S, A = parts(after, module)
        close(R, alone[0][module] / 3 + 2 * alone[1][module] / 3)
        assert (S == 1).all() and R.abs().max() > 1e-6
        assert torch.equal(B, parts(before, module)[0]) and torch.equal(A, parts(before, module)[3])


def test_on_the_complete_graph_every_peer_is_what_a_server_would_have(model):
    moving = heads()(model.initial, 0)
    frozen = {name: t for name, t in model.initial.items() if name not in moving}
    first = {name: t for name, t in model.initial.items() if name in moving}

    def train(state, who):
        return train_peers(model, state, work_of(model, state.round), LocalRules(sgd(LR)), frozen)

    peers = PeerState(0, AdapterBank.repeat(first, 2), {})
    for server in with_server(model, examples=(1, 1))[1:]:
        peers, _ = peer_round(peers, train, uniform(2), moving, ALGORITHM)
        for name, t in peers.bank.tensors.items():
            close(t, server.adapter[name].expand_as(t))
    assert consensus(peers.bank, frozen, modules(model.initial)).error < 1e-12


def test_on_any_graph_the_mean_of_the_products_stays_and_peers_come_nearer():
    draws = torch.Generator().manual_seed(1)
    shapes = {"m.lora_R.weight": (2, 2, 2), "m.lora_S.weight": (2,)}
    apart = {n: torch.randn(5, *s, generator=draws, dtype=torch.float64) for n, s in shapes.items()}
    wide = {"m.lora_A.weight": torch.randn(4, 6).double(), "m.lora_B.weight": torch.randn(5, 4).double()}
    after = peer_round(PeerState(0, AdapterBank(apart), {}), going([0.0] * 5), ring(), set(shapes), ALGORITHM)
    mixed = after[0].bank.tensors

    def products(rows):
        return as_lora({n: t.expand(5, *t.shape) for n, t in wide.items()} | rows)["m.lora_B.weight"]

    close(products(mixed).mean(0), products(apart).mean(0))
    close(mixed["m.lora_S.weight"], torch.ones(5, 2).double())
    near, far = (consensus(AdapterBank(rows), wide, ["m"]).error for rows in (mixed, apart))
    away = products(apart) @ wide["m.lora_A.weight"]
    assert far == pytest.approx(float(torch.linalg.matrix_norm(away - away.mean(0)).mean()))
    assert near < far


def test_peft_loads_the_ordinary_lora(model, states, tmp_path):
    row = states[-1].adapter
    model.save(row, tmp_path)
    saved = PeftModel.from_pretrained(tiny_llama().double(), tmp_path)
    for module in modules(row):
        B, R, _, A = parts(row, module)
        wanted = B @ torch.block_diag(*R) @ A
        close(saved.get_submodule(module).get_delta_weight("default"), wanted, 1e-7)
    assert not any("lora_R" in name or "lora_S" in name for name in as_lora(row))
