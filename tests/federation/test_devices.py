"""Where adapters lie on a GPU: every part's algebra stays there, and comes to what it is on the CPU."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from graph_rounds import PEERS, ring
from pretend_gpu import CUDA, a_gpu
from updates import update_by

from fedloom.data.randomness import derive_seed
from fedloom.errors import UserError
from fedloom.federation.aggregate import aggregate
from fedloom.federation.algorithm import (
    RULE,
    SENT,
    Algorithm,
    compose,
    first_memory,
    first_peer_memory,
    part_of,
    with_prefix,
)
from fedloom.federation.attacks import Attackers, Sight, Watch
from fedloom.federation.choco import Estimates
from fedloom.federation.consensus import consensus
from fedloom.federation.layer_votes import LayerVotes, voted_round
from fedloom.federation.peers import PeerState, Trained, peer_round
from fedloom.federation.plugged import made
from fedloom.federation.priority import GRAD_EVALS, Projection, layer_scores
from fedloom.federation.privacy.user import UserPrivacy
from fedloom.federation.ranks import Ranks
from fedloom.federation.secure_sum import Counts, SecureSum
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.update import encode_update
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.bank import AdapterBank, norm_of, usable
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.methods import ATTACK, PARTS
from fedloom.options.parts import choices
from fedloom.training.algorithms import check_among_peers
from fedloom.training.factors import each_with_a_residual

CLIENTS = 4
MODULES = [f"base_model.model.layers.{i}.q_proj" for i in range(2)]
SHAPES = {f"{m}.lora_{f}.weight": s for m in MODULES for f, s in (("A", (4, 6)), ("B", (5, 4)))}
SHAPES["base_model.model.score.weight"] = (3, 6)
DEFAULTS = {part.option: part.default for part in PARTS}


def drawn(shape, *ids):
    """Numbers of the CPU, the same for the same ids."""
    generator = torch.Generator().manual_seed(derive_seed(7, "drawn", *ids))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


ADAPTER = {name: drawn(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}


def on(device, row=ADAPTER):
    return {name: t.to(device) for name, t in row.items()}


def random_like(bank, *ids):
    """A bank of other numbers where the bank is."""
    return AdapterBank(
        {n: drawn(t.shape, i, *ids).to(t.device) for i, (n, t) in enumerate(bank.tensors.items())}
    )


def tensors_of(found, name=""):
    """All tensors in what a function returns, by where they stand in it."""
    if isinstance(found, torch.Tensor):
        return {name: found}
    if isinstance(found, AdapterBank):
        return tensors_of(found.tensors, name)
    if isinstance(found, dict):
        return {k: t for key, each in found.items() for k, t in tensors_of(each, f"{name} {key}").items()}
    if isinstance(found, list | tuple):
        return tensors_of(dict(enumerate(found)), name)
    return {name: torch.tensor(found, dtype=torch.float64)}


def same_on_a_gpu(run):
    """What ``run(device)`` returns on a GPU, and that it is what it returns on the CPU."""
    with a_gpu():
        there = run(CUDA)
        found = {name: t.cpu() for name, t in tensors_of(there).items()}
    wanted = tensors_of(run(torch.device("cpu")))
    assert found.keys() == wanted.keys() and found
    for name, t in wanted.items():
        torch.testing.assert_close(found[name], t, rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)
    return there


def all_there(*rows):
    return all(t.device == CUDA for t in tensors_of(rows).values())


EVERY = [(part.option, name) for part in PARTS for name in choices(part)]


def rounds_of(algorithm):
    """What a rule keeps of the first round matters in the second."""
    return 2 if algorithm.rule.remembers or algorithm.rule.at_server else 1


def served(algorithm, device):
    """What a server has after rounds whose clients take one step each by numbers drawn at random."""
    adapter, turned = on(device), algorithm.refactoring
    if turned is not None and turned.initial is not None:
        adapter = turned.initial(adapter, 7)
    state, memories = initial_state(adapter, algorithm), dict.fromkeys(range(CLIENTS), None)
    memories = dict.fromkeys(memories, first_memory(algorithm, adapter))

    def train(round_, clients, trained, rest, kept):
        starts = [algorithm.handed_out(trained, client) for client in clients]
        start = AdapterBank.stack(starts)
        remembered = AdapterBank.stack([part_of(memories[client], RULE) for client in clients]).tensors
        gradients = algorithm.rule.correct(
            random_like(start, round_), start.map(lambda t: 0.9 * t), start, remembered, kept
        )
        bank = start.map(lambda w, g: w - 0.1 * g, gradients)
        # As `train_locally` counts them: on the CPU.
        after, sent = algorithm.rule.finish(start, bank, torch.full((CLIENTS,), 1), remembered, kept)
        for client in clients:
            delta = {name: t[client] - starts[client][name] for name, t in bank.tensors.items()}
            memory = memories[client] | with_prefix(RULE, AdapterBank(after).row(client) if after else {})
            own = {name: t[client] for name, t in sent.items()}
            payload, memories[client] = encode_update(
                algorithm, client, delta, own, memory, client, state.clip
            )
            yield update_by(client, payload, examples=client + 1)

    for _ in range(rounds_of(algorithm)):
        state, _ = federated_round(state, range(CLIENTS), train, algorithm, of=2 * CLIENTS)
    if device.type == "cuda":
        assert all_there(state.adapter, state.optimiser, state.rule, state.base, list(memories.values()))
    return state.adapter, state.optimiser, state.rule, state.base, memories, state.clip


@pytest.mark.parametrize(("option", "name"), EVERY)
def test_rounds_with_a_server(option, name):
    algorithm = compose(DEFAULTS | {option: name}, vars(FedConfig(model_name="m")), client_lr=0.1)
    same_on_a_gpu(partial(served, algorithm))


@pytest.mark.parametrize(
    "parts",
    [
        {"privacy": UserPrivacy(0.5, 0.5, 1.0, 2 * CLIENTS, CLIENTS, key=3)},
        {"ranks": Ranks([1, 4, 2, 4], 4, [4.0, 1.0, 2.0, 1.0], products=False)},
        {"ranks": Ranks([1, 4, 2, 4], 4, [4.0, 1.0, 2.0, 1.0], products=True), "aggregator": "flexlora"},
    ],
    ids=["noise and a clip that adapts", "ranks", "ranks of products"],
)
def test_rounds_that_hide_clients_or_have_clients_of_several_ranks(parts):
    texts = DEFAULTS | {"lora_aggregation": parts.pop("aggregator", "factors")}
    same_on_a_gpu(partial(served, replace(compose(texts, vars(FedConfig(model_name="m")), 0.1), **parts)))


@pytest.mark.parametrize("bits", [16, 32])
def test_secure_sums(bits):
    algorithm = Algorithm(client_lr=0.1, secure=SecureSum(4.0, CLIENTS, CLIENTS, bits))

    def run(device):
        updates = []
        for k in range(CLIENTS):
            delta = random_like(AdapterBank.repeat(on(device), 1), k).row(0)
            payload = algorithm.secure.encode(delta, Counts(1, k + 1, 0, 1, 1, 1.0), k)
            updates.append(update_by(k, payload, examples=k + 1))
        return aggregate(on(device), updates, algorithm).pseudo_gradient

    assert all_there(same_on_a_gpu(run))


def on_a_graph():
    """What can be had without a server."""
    settings = {k: v for k, v in vars(DflConfig(model_checkpoint="m")).items() if k != "client_lr"}
    settings |= {"client_optimizer": "sgd", "residual_rank": 2}
    for option, name in EVERY:
        if option in ("aggregator", "compress", "client_rule", "lora_aggregation"):
            try:
                algorithm = compose(DEFAULTS | {option: name}, settings, client_lr=1.0)
                check_among_peers(algorithm)
            except UserError:
                continue
            if algorithm.folds:
                try:
                    algorithm = each_with_a_residual(DEFAULTS | {option: name}, algorithm, one_a=False)
                except UserError:
                    continue
            yield pytest.param(algorithm, id=f"{option} {name}")


@pytest.mark.parametrize("algorithm", [*on_a_graph()])
def test_rounds_on_a_graph(algorithm):
    def run(device):
        adapter = on(device)
        adapter |= algorithm.first_base(adapter)
        memory = AdapterBank.repeat(first_peer_memory(algorithm, adapter, PEERS), PEERS).tensors
        state = PeerState(0, AdapterBank.repeat(adapter, PEERS), {}, Estimates(adapter), memory)
        mixed = adapter.keys() | {name for name in memory if name.startswith(SENT)}

        def train(state, who):
            own, received = part_of(state.memory, RULE), part_of(state.memory, SENT)
            start = state.bank
            bank = start.map(
                torch.sub, algorithm.rule.correct(random_like(start), start, start, own, received)
            )
            after, sent = algorithm.rule.finish(start, bank, who.long(), own, received)
            losses = torch.where(who, torch.ones(PEERS, dtype=torch.float64), torch.nan)
            bank.tensors[next(iter(SHAPES))][1] = torch.inf  # one peer diverges
            kept = state.memory | with_prefix(RULE, after) | with_prefix(SENT, sent)
            return Trained(bank, {}, losses, *[who.long()] * 3, {k: kept[k] for k in state.memory})

        for _ in range(rounds_of(algorithm)):
            state, report = peer_round(state, train, ring(), mixed, algorithm)
        assert 1 in report.left_out
        error = consensus(state.bank, {}, MODULES)
        return state.bank, state.memory, error.error, error.relative

    bank, *_ = same_on_a_gpu(run)
    assert all_there(bank)


@pytest.mark.parametrize("name", choices(ATTACK))
def test_attacks(name):
    attackers = Attackers(frozenset({0}), made(ATTACK, name, vars(FedConfig(model_name="m"))), seed=7)

    def run(device):
        watch = Watch(on(device))
        for k in range(3):
            watch.add(random_like(AdapterBank.repeat(on(device), 1), k).row(0))
        sight = Sight(CLIENTS, 1, *watch.seen(lambda here: here))
        return attackers.crafted(0, 1, on(device), sight)

    assert all_there(same_on_a_gpu(run))


@pytest.mark.parametrize("grad_eval", GRAD_EVALS)
def test_scores_and_votes_of_layers(grad_eval):
    def run(device):
        bank = AdapterBank.repeat(on(device), PEERS)
        weight = drawn((5, 6)).to(device)
        layers = {i: [Projection(*lora_pairs(SHAPES)[i], 0.5, lambda: weight)] for i in range(2)}
        votes = LayerVotes(layers, 1, 0, grad_eval, "either", True, 7, frozen={})

        def train(state, who, chosen):
            counts = chosen.any(1).long()
            return Trained(state.bank, {}, torch.ones(PEERS, dtype=torch.float64), counts, counts, counts)

        def gradients(state, who):
            return random_like(state.bank)

        state, _, report = voted_round(PeerState(0, bank, {}), train, gradients, ring(), set(SHAPES), votes)
        scores = layer_scores(bank.row(0), random_like(bank).row(0), list(layers.values()), grad_eval)
        return state.bank, report.votes, report.chosen.double(), scores

    bank, *on_cpu = same_on_a_gpu(run)
    assert all_there(bank) and not any(t.is_cuda for t in on_cpu)


def test_the_bank():
    """Weights, numbers and matrices come from where they are made: the CPU."""

    def run(device):
        bank = random_like(AdapterBank.repeat(on(device), 3))
        dense = drawn((2, 3))
        mean = bank.mean(torch.tensor([1.0, 2.0, 3.0]))
        inside, outside = bank.split({next(iter(SHAPES))})
        found = [
            mean,
            dense @ bank,
            dense.to_sparse_csr() @ bank,
            bank.rows([2, 0]),
            inside,
            outside,
            bank.norms(),
        ]
        return [*found, norm_of(mean), float(usable(mean))]

    *rows, _, _ = same_on_a_gpu(run)
    assert all_there(rows)
