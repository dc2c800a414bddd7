"""How LoRA's factors are combined, each against dense matrices written out, and in its degenerate cases."""

import pytest
import torch

from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import Algorithm
from fedloom.federation.lora_aggregations.fedsvd import by_svd, fedsvd
from fedloom.federation.lora_aggregations.hetlora import hetlora
from fedloom.federation.lora_aggregations.lora_fair import lora_fair
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.train_factors.b import b
from fedloom.federation.update import Update
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import AdapterBank

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "score.weight"
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def arrived(senders=3, weights=WEIGHTS, seed=0, **changed):
    torch.manual_seed(seed)
    before = {A: torch.randn(2, 6).double(), B: torch.randn(5, 2).double(), HEAD: torch.randn(3, 4).double()}
    deltas = {name: torch.randn(senders, *t.shape).double() for name, t in before.items()}
    return Changes(before, AdapterBank(deltas | changed), weights, lora_pairs(before))


def factors(changes):
    return (changes.before[name] + changes.deltas.tensors[name] for name in (A, B))


def close(found, wanted):
    for name, t in wanted.items():
        torch.testing.assert_close(found[name], t, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scales", [None, torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)])
def test_lora_fair_is_the_ridge_regression_on_the_dense_residual(scales):
    changes, penalty = arrived(), 0.3
    changes = Changes(changes.before, changes.deltas, changes.weights, changes.pairs, scales)
    As, Bs = factors(changes)
    Bs = Bs if scales is None else Bs * scales.view(-1, 1, 1)
    mean_a, mean_b = (torch.einsum("k,kij->ij", WEIGHTS, t) for t in (As, Bs))
    residual = torch.einsum("k,kor,kri->oi", WEIGHTS, Bs, As) - mean_b @ mean_a
    # min ‖residual − ΔB Ā‖² + λ ‖ΔB‖² as least squares: rows of √λ I beneath Āᵀ.
    tall = torch.cat([mean_a.T, penalty**0.5 * torch.eye(2).double()])
    wanted = torch.linalg.lstsq(tall, torch.cat([residual.T, torch.zeros(2, 5).double()])).solution.T
    found = lora_fair(penalty, aggregator=weighted_mean)(changes)
    close({B: changes.before[B] + found[B]}, {B: mean_b + wanted})
    close(found, {A: mean_a - changes.before[A], HEAD: weighted_mean(changes)[HEAD]})
    after = (mean_b + wanted) @ mean_a
    assert (after - mean_b @ mean_a - residual).norm() < 0.9 * residual.norm()


@pytest.mark.parametrize(
    ("changes", "penalty"),
    [
        (arrived(), 1e14),
        (arrived(1, torch.ones(1).double()), 0.01),
        (arrived(**{A: torch.randn(2, 6).double().expand(3, 2, 6)}), 0.01),
    ],
    ids=["a penalty without end", "one client", "one A for all"],
)
def test_where_nothing_is_missed_or_may_be_mended_lora_fair_is_fedavg(changes, penalty):
    close(lora_fair(penalty, aggregator=weighted_mean)(changes), weighted_mean(changes))


def test_hetlora_weighs_by_the_norms_of_dense_products():
    changes = arrived()
    As, Bs = factors(changes)
    norms = torch.stack([(b @ a).norm() for a, b in zip(As, Bs, strict=True)])
    q = WEIGHTS * norms / (WEIGHTS * norms).sum()
    wanted = {name: torch.einsum("k,kij->ij", q, changes.deltas.tensors[name]) for name in (A, B)}
    found = hetlora(aggregator=weighted_mean)(changes)
    close(found, wanted | {HEAD: weighted_mean(changes)[HEAD]})
    assert not torch.allclose(found[B], weighted_mean(changes)[B])


def test_with_equal_norms_or_none_hetlora_is_fedavg():
    plain = arrived()
    signs = torch.tensor([1.0, -1.0, 1.0]).double().view(-1, 1, 1)
    flipped = {name: (signs - 1) * plain.before[name] for name in (A, B)}  # the same product, −B · −A
    nothing = {B: -plain.before[B].expand(3, 5, 2)}
    for changes in (arrived(**flipped), arrived(**nothing)):
        close(hetlora(aggregator=weighted_mean)(changes), weighted_mean(changes))


@pytest.mark.parametrize("lost", [0, 1, 2], ids=["full rank", "a direction less", "B = 0"])
def test_fedsvd_keeps_the_product_in_the_factors_of_its_svd(lost):
    adapter = arrived().before
    adapter[B][:, :lost] = 0
    turned = by_svd(adapter)
    close(turned, {A: turned[A], B: turned[B], HEAD: adapter[HEAD]})
    close(
        {A: turned[B] @ turned[A], B: turned[A] @ turned[A].T},
        {A: adapter[B] @ adapter[A], B: torch.eye(2).double()},
    )
    singular = torch.linalg.svdvals(adapter[B] @ adapter[A])[:2]
    close({B: turned[B].T @ turned[B]}, {B: torch.diag(singular**2)})
    # No direction is lost: what A spanned before it still spans.
    close({A: adapter[A] @ turned[A].T @ turned[A]}, {A: adapter[A]})
    close(by_svd(turned) if lost == 0 else turned, turned)


def test_a_round_of_fedsvd_is_the_exact_mean_of_the_products_and_turns_a():
    adapter = arrived().before
    algorithm = Algorithm(client_lr=0.1, trains=b(), refactoring=fedsvd(aggregator=weighted_mean))
    moves = {k: torch.randn(5, 2).double() for k in range(3)}

    def train(round_, clients, trained, rest, rule):
        assert trained.keys() == {B, HEAD}
        for k in clients:
            yield Update(k, {B: moves[k], HEAD: torch.zeros(3, 4).double()}, k + 1, 0.0, 0, 1, 1)

    state, report = federated_round(initial_state(adapter, algorithm), [0, 1, 2], train, algorithm)
    wanted = sum((k + 1) / 6 * (adapter[B] + moves[k]) @ adapter[A] for k in range(3))
    close({A: state.adapter[B] @ state.adapter[A]}, {A: wanted})
    assert (state.adapter[A] - adapter[A]).norm() > 0.1
    _, later = federated_round(state, [0, 1, 2], train, algorithm)
    # A is as it was drawn in the first round, and is sent in all others.
    assert later.bytes_down - report.bytes_down == 3 * 8 * adapter[A].numel()
    assert later.bytes_up == report.bytes_up == 3 * 8 * (adapter[B].numel() + adapter[HEAD].numel())
