"""Fed-SB: a square matrix between factors that the first rounds have fixed, against its dense formula."""

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from peft import LoraConfig, PeftModel
from tiny import tiny_llama

from fedloom.client.local import LocalRules
from fedloom.client.optimisers import sgd
from fedloom.client.work import ClientWork
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.lora_aggregations.fedsb import fedsb
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.train_factors.square import square
from fedloom.model.adapters.products import svd_of_product
from fedloom.model.adapters.square import as_lora, with_square
from fedloom.model.packing import build_pack
from fedloom.runtimes.in_process import run_clients

LORA = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, target_modules=["q_proj", "v_proj"])
LR, STEPS, ROUNDS = 0.05, 2, 4
DATA = clients_data((ROUNDS * STEPS, ROUNDS * STEPS))

pytestmark = pytest.mark.usefixtures("full_precision")


def close(found, wanted, atol=1e-10):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["full rank", "a direction less", "B = 0"])
@pytest.mark.parametrize("d_in", [6, 1], ids=["wide", "narrower than the rank"])
def test_the_svd_of_a_product_has_all_its_directions(lost, d_in):
    torch.manual_seed(lost)
    A, B = torch.randn(2, d_in).double(), torch.randn(5, 2).double()
    B[:, :lost] = 0
    U, S, Vh = svd_of_product(B, A)
    close(U * S @ Vh, B @ A)
    close(S, torch.linalg.svdvals(B @ A)[: len(S)])
    for orthonormal in (U.T @ U, Vh @ Vh.T):
        close(orthonormal, torch.eye(len(S)).double())


@pytest.fixture(scope="module")
def model():
    made = make_stacked(tiny_llama().double(), LORA, DATA)
    made.initial = with_square(start_bank(made, 1).row(0))
    return made


@pytest.fixture(scope="module")
def rounds(model):
    """The server's states, from that before the first round on, and what every round sent."""
    algorithm = Algorithm(LR, trains=square(), refactoring=fedsb(aggregator=weighted_mean))
    states, reports = [initial_state(model.initial, algorithm)], []

    def train(round_, who, trained, rest, received):
        here = slice(round_ * STEPS, (round_ + 1) * STEPS)
        work = [ClientWork(k, steps_of(k, DATA[k], model.layout)[here], examples=k + 1) for k in who]
        return run_clients(model, trained, work, LocalRules(sgd(LR)), algorithm, frozen=rest)

    for _ in range(ROUNDS):
        state, report = federated_round(states[-1], [0, 1], train, algorithm)
        states, reports = [*states, state], [*reports, report]
    return states, reports


def modules(row):
    return [name.removesuffix(".lora_R.weight") for name in row if name.endswith(".lora_R.weight")]


def factors(row, module):
    return [row[f"{module}.lora_{factor}.weight"] for factor in "BRA"]


def test_from_the_third_round_on_a_square_matrix_trains_between_orthonormal_factors(rounds):
    states, _ = rounds
    fixed, last = states[2].adapter, states[4].adapter
    for module in modules(fixed):
        B, R, A = factors(fixed, module)
        close(B.T @ B, torch.eye(2).double())
        close(A @ A.T, torch.eye(2).double())
        assert R[0, 0] >= R[1, 1] > 0 and R[0, 1] == R[1, 0] == 0
        later_b, later_r, later_a = factors(last, module)
        assert torch.equal(later_b, B) and torch.equal(later_a, A)
        assert (later_r - R).abs().max() > 1e-6 and later_r[0, 1] != 0


def dense(model, row, client, round_):
    """A client's R after a round, by autograd through W_0 + s B R A as it stands, and its losses."""
    squares = {module: factors(row, module)[1].clone() for module in modules(row)}
    for step in steps_of(client, DATA[client], model.layout)[round_ * STEPS : (round_ + 1) * STEPS]:
        leaves = {module: R.clone().requires_grad_() for module, R in squares.items()}
        # LoRA of full rank: A = I, and B the dense change of the weights.
        whole = {}
        for module, R in leaves.items():
            B, _, A = factors(row, module)
            whole[f"{module}.lora_A.weight"] = torch.eye(A.shape[1]).double()[None]
            whole[f"{module}.lora_B.weight"] = (B @ R @ A)[None]
        loss = model.losses(whole, build_pack([step], model.layout)).loss[0]
        for module, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            squares[module] = squares[module] - LR * gradient
    return squares


def test_a_round_is_the_dense_formula_and_the_mean_of_the_products_is_exact(model, rounds):
    states, _ = rounds
    before, after = states[2].adapter, states[3].adapter
    alone = [dense(model, before, client, 2) for client in (0, 1)]
    for module in modules(before):
        mean = alone[0][module] / 3 + 2 * alone[1][module] / 3
        close(factors(after, module)[1], mean)
        B, _, A = factors(before, module)
        products = sum(weight * B @ R[module] @ A for weight, R in zip((1 / 3, 2 / 3), alone, strict=True))
        found_b, found_r, found_a = factors(after, module)
        close(found_b @ found_r @ found_a, products)


def test_other_factors_change_no_product_and_all_is_counted_that_is_sent(rounds):
    states, reports = rounds
    algorithm = fedsb(aggregator=weighted_mean)
    for round_ in (0, 1):
        row = states[round_].adapter
        turned = algorithm.refactor(row, round_)
        for module in modules(row):
            B, R, A = factors(row, module)
            new_b, new_r, new_a = factors(turned, module)
            close(new_b @ new_r @ new_a, B @ R @ A)
    size = {f: sum(8 * t.numel() for n, t in states[0].adapter.items() if f".lora_{f}." in n) for f in "BRA"}
    assert [report.bytes_up for report in reports] == [2 * size[f] for f in "BARR"]
    both, r = size["A"] + size["B"], size["R"]
    assert [report.bytes_down for report in reports] == [2 * n for n in (size["B"], both, both + r, r)]


def test_peft_loads_the_ordinary_lora_whose_b_is_b_r(model, rounds, tmp_path):
    row = rounds[0][-1].adapter
    model.save(row, tmp_path)
    saved = PeftModel.from_pretrained(tiny_llama().double(), tmp_path)
    for module in modules(row):
        B, R, A = factors(row, module)
        layer = saved.get_submodule(module)
        close(layer.get_delta_weight("default"), 3 * B @ R @ A, 1e-7)
    assert not any("lora_R" in name for name in as_lora(row))
