"""Aggregators that look at a whole change, each against distances of dense products, and against outliers."""

import pytest
import torch
from graph_rounds import PEERS, going, random_bank, ring, state_of, uniform
from updates import update_by

from fedloom.client.rules.scaffold import scaffold
from fedloom.federation.aggregate import aggregate
from fedloom.federation.aggregators import Changes
from fedloom.federation.aggregators.centered_clipping import centered_clipping
from fedloom.federation.aggregators.geometric_median import geometric_median
from fedloom.federation.aggregators.krum import krum
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.aggregators.median import median
from fedloom.federation.aggregators.multi_krum import multi_krum
from fedloom.federation.aggregators.norm_bound import norm_bound
from fedloom.federation.aggregators.trimmed_mean import trimmed_mean
from fedloom.federation.algorithm import SENT, Algorithm, with_prefix
from fedloom.federation.inner_products import inner_products, lengths
from fedloom.federation.peers import mix, peer_round
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import AdapterBank

A, B, HEAD = "m.lora_A.weight", "m.lora_B.weight", "score.weight"
SENDERS = 7
ALL = {
    "krum": krum(),
    "multi_krum": multi_krum(),
    "geometric_median": geometric_median(),
    "centered_clipping": centered_clipping(),
    "norm_bound": norm_bound(),
}


def arrived(senders=SENDERS, seed=0, spoil=None):
    """Changes of random factors; ``spoil`` alters those of the last sender in place."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    before = {A: draw(2, 6), B: draw(5, 2), HEAD: draw(3, 4)}
    # What clients have in common, and noise.
    deltas = {name: draw(*t.shape) + 0.3 * draw(senders, *t.shape) for name, t in before.items()}
    weights = draw(senders).abs() + 0.5
    if spoil is not None:
        spoil({name: t[-1] for name, t in deltas.items()}, before)
        weights[-1] = weights.min()
    return Changes(before, AdapterBank(deltas), weights / weights.sum(), lora_pairs(before))


def points(changes):
    """Every sender's change as a vector: dense products, then all parameters."""
    before, deltas = changes.before, changes.deltas.tensors
    products = (before[B] + deltas[B]) @ (before[A] + deltas[A]) - before[B] @ before[A]
    return torch.cat([products.flatten(1), *(deltas[name].flatten(1) for name in (A, B, HEAD))], 1)


def combined(changes, coefficients):
    return {name: torch.tensordot(coefficients, t, dims=1) for name, t in changes.deltas.tensors.items()}


def close(found, wanted, atol=1e-10):
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        torch.testing.assert_close(found[name], t, rtol=atol, atol=atol)


def test_inner_products_are_those_of_dense_products_and_parameters():
    dense = points(arrived())
    torch.testing.assert_close(inner_products(arrived()), dense @ dense.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(lengths(arrived()), dense.norm(dim=1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("c", [1e-3, 30.0])
def test_the_products_part_does_not_depend_on_the_gauge(c):
    """(c A, B / c) of everybody is the same model, and the same distances of products."""
    changes = arrived()
    gauge = {A: c, B: 1 / c, HEAD: 1.0}
    other = Changes(
        {name: gauge[name] * t for name, t in changes.before.items()},
        AdapterBank({name: gauge[name] * t for name, t in changes.deltas.tensors.items()}),
        changes.weights,
        changes.pairs,
    )
    found = []
    for each in (changes, other):
        flat = torch.cat([t.flatten(1) for t in each.deltas.tensors.values()], 1)
        found.append(inner_products(each) - flat @ flat.T)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def scores(dense, left_out):
    """The paper's: the squared distances to the n − f − 2 nearest others, one sender after another."""
    found = []
    for k, own in enumerate(dense):
        others = sorted(float((own - other).square().sum()) for j, other in enumerate(dense) if j != k)
        found.append(sum(others[: len(dense) - left_out - 2]))
    return found


def test_krum_and_multi_krum_are_the_papers():
    for seed in range(5):
        changes = arrived(seed=seed)
        found = scores(points(changes), 2)
        order = sorted(range(SENDERS), key=found.__getitem__)
        close(krum(0.3)(changes), changes.deltas.row(order[0]))
        kept = torch.zeros(SENDERS, dtype=torch.float64)
        kept[order[:5]] = changes.weights[order[:5]]
        close(multi_krum(0.3)(changes), combined(changes, kept / kept.sum()))


def test_the_geometric_median_has_the_smallest_sum_of_distances():
    changes = arrived(spoil=lambda own, before: own[HEAD].mul_(30))
    dense, v = points(changes), changes.weights @ points(changes)
    for _ in range(2000):
        near = changes.weights / (dense - v).norm(dim=1)
        a = near / near.sum()
        v = a @ dense
    close(geometric_median()(changes), combined(changes, a), atol=1e-8)
    pull = (changes.weights[:, None] * (dense - v) / (dense - v).norm(dim=1, keepdim=True)).sum(0)
    assert pull.norm() < 1e-8, "nothing pulls at the median"


@pytest.mark.parametrize("steps", [1, 3])
def test_centred_clipping_is_the_papers_loop(steps):
    changes = arrived(spoil=lambda own, before: own[B].mul_(20))
    dense, v, a = (
        points(changes),
        torch.zeros(len(points(changes)[0])).double(),
        torch.zeros(SENDERS).double(),
    )
    for _ in range(steps):
        away = dense - v
        tau = 0.8 * away.norm(dim=1).median()
        step = changes.weights * (tau / away.norm(dim=1)).clamp(max=1)
        v, a = v + step @ away, a * (1 - step.sum()) + step
    close(centered_clipping(0.8, float(steps))(changes), combined(changes, a))
    torch.testing.assert_close(a @ dense, v)
    if steps == 1:
        close(norm_bound(0.8)(changes), combined(changes, a))


def told_beside(aggregator, last=1.0):
    """What a server makes of seven clients' variates, of which the last one's is ``last`` times as large."""
    generator = torch.Generator().manual_seed(3)
    rows = [{"w": torch.randn(50, generator=generator, dtype=torch.float64) + 1} for _ in range(SENDERS)]
    sent = [{"w": (last if k == SENDERS - 1 else 1.0) * row["w"]} for k, row in enumerate(rows)]
    algorithm = Algorithm(1.0, rule=scaffold(client_lr=1.0), aggregator=aggregator)
    # Weights of changes are those of examples; of variates all count alike.
    updates = [
        update_by(k, row | with_prefix(SENT, s), examples=k + 1)
        for k, (row, s) in enumerate(zip(rows, sent, strict=True))
    ]
    return aggregate({"w": torch.zeros(50).double()}, updates, algorithm).sent["w"], [s["w"] for s in sent]


@pytest.mark.parametrize("name", [*ALL, "median", "trimmed_mean"])
def test_a_client_cannot_poison_through_what_its_rule_sends_beside_its_change(name):
    aggregator = (ALL | {"median": median(), "trimmed_mean": trimmed_mean(0.2)})[name]
    for last in (1.0, -30.0, 1e9):
        found, sent = told_beside(aggregator, last)
        assert found.norm() <= max(row.norm() for row in sent[:-1]), "no larger than an honest one"
    if name == "norm_bound":
        norms = torch.stack(sent).norm(dim=1)
        kept = (2 * norms.median() / norms).clamp(max=1)
        torch.testing.assert_close(found, (kept[:, None] * torch.stack(sent)).mean(0))
    spoiled, sent = told_beside(weighted_mean, 1e9)
    torch.testing.assert_close(spoiled, torch.stack(sent).mean(0))


@pytest.mark.parametrize(
    "aggregator",
    [multi_krum(0.0), geometric_median(1e9), centered_clipping(1e9), norm_bound(1e9)],
    ids=["nobody left out", "smoothed flat", "bound far away", "norm bound far away"],
)
def test_in_its_degenerate_case_each_is_the_mean(aggregator):
    close(aggregator(arrived()), weighted_mean(arrived()))


@pytest.mark.parametrize("name", ALL)
def test_of_one_sender_and_of_equal_ones_each_is_their_change(name):
    one = arrived(1)
    close(ALL[name](one), one.deltas.row(0))
    same = AdapterBank({n: t[:1].expand(5, *t.shape[1:]).clone() for n, t in one.deltas.tensors.items()})
    weights = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    close(ALL[name](Changes(one.before, same, weights, one.pairs)), one.deltas.row(0))
    nobody = AdapterBank({n: torch.zeros_like(t) for n, t in same.tensors.items()})
    close(ALL[name](Changes(one.before, nobody, weights, one.pairs)), nobody.row(0))


def far(own, before):
    own[HEAD].fill_(1e100)


def flipped(own, before):
    for t in own.values():
        t.mul_(-1e4)


def regauged(own, before, c=1e4):
    """The same product as before the round, in factors that ruin a mean of factors."""
    own[A].copy_(c * before[A] - before[A])
    own[B].copy_(before[B] / c - before[B])


def regauged_back(own, before):
    regauged(own, before, 1e-4)


@pytest.mark.parametrize("attack", [far, flipped, regauged, regauged_back])
@pytest.mark.parametrize("name", [*ALL, "median", "trimmed_mean"])
def test_one_of_seven_far_away_carries_it_nowhere(name, attack):
    spoilt = arrived(spoil=attack)
    honest = AdapterBank({n: t[:-1] for n, t in spoilt.deltas.tensors.items()})
    # These two look at each number alone, whatever its product.
    found = {**ALL, "median": median(), "trimmed_mean": trimmed_mean()}[name](spoilt)
    for n, t in honest.tensors.items():
        centre = t.mean(0)
        spread = (t - centre).flatten(1).norm(dim=1).max()
        assert (found[n] - centre).norm() < 3 * spread + 0.5 * centre.norm(), n
    assert any((weighted_mean(spoilt)[n] - t.mean(0)).norm() > 3 for n, t in honest.tensors.items())


def test_clipped_gossip_is_self_centred_clipping():
    bank, matrix = random_bank(), ring()
    after, _ = peer_round(
        state_of(bank),
        going([0.0] * PEERS),
        matrix,
        set(bank.tensors),
        Algorithm(1.0, aggregator=norm_bound(0.5)),
    )
    W = torch.as_tensor(matrix.dense(), dtype=torch.float64)
    for i in range(PEERS):
        own, others = bank.row(i), [j for j in range(PEERS) if j != i and W[i, j] > 0]
        deltas = AdapterBank({n: t[others] - t[i] for n, t in bank.tensors.items()})
        a, b = "q.lora_A.weight", "q.lora_B.weight"
        products = (own[b] + deltas.tensors[b]) @ (own[a] + deltas.tensors[a]) - own[b] @ own[a]
        norms = (products.flatten(1).square().sum(1) + deltas.norms().square()).sqrt()
        share = W[i, others] * (0.5 * norms.median() / norms).clamp(max=1)
        for n, t in deltas.tensors.items():
            torch.testing.assert_close(after.bank.tensors[n][i], own[n] + torch.tensordot(share, t, dims=1))


def test_on_a_graph_a_far_bound_is_plain_gossip():
    bank, matrix = random_bank(), uniform()
    for aggregator in (norm_bound(1e9), centered_clipping(1e9), multi_krum(0.0)):
        algorithm = Algorithm(1.0, aggregator=aggregator)
        after, _ = peer_round(state_of(bank), going([0.0] * PEERS), matrix, set(bank.tensors), algorithm)
        close(after.bank.tensors, mix(bank, matrix.rows(range(PEERS)), set(bank.tensors)).tensors)


@pytest.mark.parametrize("size", [1e3, 1e12, 8e18])
def test_the_geometric_median_stays_where_most_are_however_far_the_others(size):
    """49 of 100: from the mean of all, so many steps would not lead back from so far away."""
    generator = torch.Generator().manual_seed(3)
    deltas = torch.randn(100, 50, generator=generator, dtype=torch.float64)
    deltas[51:] = size
    weights = torch.full((100,), 0.01, dtype=torch.float64)
    changes = Changes({"w": torch.zeros(50, dtype=torch.float64)}, AdapterBank({"w": deltas}), weights)
    assert geometric_median()(changes)["w"].norm() < 5 * deltas[:51].norm(dim=1).max()


def test_krum_says_when_there_are_too_few(caplog):
    changes = arrived(senders=5)
    krum(0.4)(changes)
    assert "krum does not withstand 2 attackers among 5 senders: it takes at least 7 senders" in caplog.text


def in_a_line(*sizes):
    """Changes of these sizes in one direction, all of one weight."""
    deltas = AdapterBank({"w": torch.tensor(sizes, dtype=torch.float64)[:, None]})
    weights = torch.full((len(sizes),), 1 / len(sizes), dtype=torch.float64)
    return Changes({"w": torch.zeros(1, dtype=torch.float64)}, deltas, weights)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((5.0,), 5.0),  # alone, nothing bounds it
        ((1.0, 100.0), (1 + 2) / 2),  # of two the smaller is the measure
        ((1e-9, 100.0), (1e-9 + 2e-9) / 2),  # so that one may slow the other
        ((0.0, 100.0), 50.0),  # who sends nothing is no measure
        ((0.0, 0.0), 0.0),
        ((1.0, 1.0, 1e6), 4 / 3),
        ((0.0, 0.0, 1.0, 1.0, 1e6), 4 / 5),
        ((1.0, 2.0, 3.0, 1e6), (1 + 2 + 3 + 4) / 4),
    ],
)
def test_in_small_rounds_a_norm_bound_is_by_the_smaller_median_of_those_who_moved(sizes, wanted):
    assert float(norm_bound()(in_a_line(*sizes))["w"]) == pytest.approx(wanted)
