"""What clients keep from round to round: personal parameters, a personal model, their optimiser's moments."""

from itertools import pairwise

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from peft import LoraConfig
from peft_alone import train_alone
from tiny import tiny_llama

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import adam, sgd
from fedloom.client.rules.ditto import ditto
from fedloom.client.rules.fedrep import fedrep
from fedloom.client.work import ClientWork
from fedloom.errors import UserError
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import PERSONAL, Algorithm, first_memory, part_of
from fedloom.federation.lora_aggregations.fedsvd import fedsvd
from fedloom.federation.lora_aggregations.flora import flora
from fedloom.federation.server import federated_round, initial_state
from fedloom.federation.server_optimizers.nesterov import nesterov
from fedloom.federation.sharing.body import body
from fedloom.federation.sharing.head import head
from fedloom.federation.train_factors.b import b
from fedloom.model.adapters.products import lora_pairs
from fedloom.model.packing import build_pack
from fedloom.runtimes.in_process import run_clients

LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
LR, ROUNDS, STEPS = 0.3, 3, 2
DATA = clients_data((ROUNDS * STEPS, ROUNDS * STEPS))

pytestmark = pytest.mark.usefixtures("full_precision")


@pytest.fixture(scope="module")
def base():
    return tiny_llama().double()


@pytest.fixture(scope="module")
def model(base):
    return make_stacked(base, LORA, DATA)


def work_of(model, client):
    return steps_of(client, DATA[client], model.layout)


def play(model, algorithm, clients=(0, 1), optimiser=None, lasting=True):
    """A federation of some rounds; the server's adapter, and each client's own parameters."""
    state, memories = rounds(model, algorithm, clients, optimiser, lasting)[-1]
    return state.adapter, {k: part_of(memory, PERSONAL) for k, memory in memories.items()}


def rounds(model, algorithm, clients, optimiser=None, lasting=True):
    """The server's states from that before the first round on, and what clients remember then."""
    optimiser = optimiser or sgd(LR)
    states = [(initial_state(start_bank(model, 1).row(0), algorithm), {})]
    state = states[0][0]
    rules = LocalRules(optimiser, rule=algorithm.rule)
    first, memories = first_memory(algorithm, state.adapter, optimiser), {}

    def train(round_, who, trained, rest, received):
        steps = slice(round_ * STEPS, (round_ + 1) * STEPS)
        work = [ClientWork(k, work_of(model, k)[steps], examples=4) for k in who]
        kept = {"memories": memories, "first": first}
        return run_clients(
            model, trained, work, rules, algorithm, frozen=rest, received=received, round_=round_, **kept
        )

    for _ in range(ROUNDS):
        model.fold(state.base)
        state, report = federated_round(state, clients, train, algorithm)
        memories |= report.memories if lasting else {}
        states.append((state, dict(memories)))
    return states


def slowly(model, client, step, start=None, steps=slice(None)):
    """One client by autograd: ``step(row, gradients, number) -> row``."""
    row = start_bank(model, 1).row(0) if start is None else start
    for number, batches in enumerate(work_of(model, client)[steps]):
        leaves = {name: t[None].clone().requires_grad_() for name, t in row.items()}
        loss = model.losses(leaves, build_pack([batches], model.layout)).loss[0]
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        row = step(row, {name: g[0] for name, g in zip(leaves, gradients, strict=True)}, number)
    return row


def down(row, gradients, number):
    return {name: t - LR * gradients[name] for name, t in row.items()}


def close(found, wanted):
    for name, t in wanted.items():
        torch.testing.assert_close(found[name], t, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_ditto_without_strength_is_local_training_beside_fedavg(model):
    shared, personal = play(model, Algorithm(LR, rule=ditto(0.0)))
    close(shared, play(model, Algorithm(LR))[0])
    for k in (0, 1):
        close(personal[k], slowly(model, k, down))
        assert max((personal[k][name] - t).abs().max() for name, t in shared.items()) > 1e-3


def test_ditto_is_the_papers_loop(model):
    strength = 0.7
    _, personal = play(model, Algorithm(LR, rule=ditto(strength)), clients=(0,))
    # With one client the server's adapter is local training: where each round began.
    began = [start_bank(model, 1).row(0)]
    slowly(model, 0, lambda row, g, number: began.append(down(row, g, number)) or began[-1])

    def towards(row, gradients, number):
        w = began[number // STEPS * STEPS]
        return {n: v - LR * (gradients[n] + strength * (v - w[n])) for n, v in row.items()}

    close(personal[0], slowly(model, 0, towards))


def test_a_personal_model_that_diverges_stays_where_it_is(model):
    shared, personal = play(model, Algorithm(LR, rule=ditto(1e200)))
    close(shared, play(model, Algorithm(LR))[0])
    close(personal[0], start_bank(model, 1).row(0))


@pytest.mark.parametrize("share", [body(1.0), head(1.0)])
def test_with_one_client_what_is_shared_and_what_is_not_train_as_one(model, share):
    adapter, personal = play(model, Algorithm(LR, share=share), clients=(1,))
    shared = share(adapter.keys())
    assert shared.isdisjoint(personal[1]) and shared | personal[1].keys() == adapter.keys()
    close(adapter | personal[1], slowly(model, 1, down))


def test_fedrep_trains_the_head_and_then_the_body(model):
    share = body(1.0)
    adapter, personal = play(model, Algorithm(LR, share=share, rule=fedrep(1.0)), clients=(1,))
    shared = share(adapter.keys())

    def in_turn(row, gradients, number):
        moves = row.keys() - shared if number % STEPS == 0 else shared
        return {n: t - LR * gradients[n] * (n in moves) for n, t in row.items()}

    close(adapter | personal[1], slowly(model, 1, in_turn))


NAMES = [f"model.layers.{n}.self_attn.q_proj.lora_{f}.weight" for n in (0, 1, 10) for f in "AB"]
HEAD = "model.classifier.2.weight"  # a number in its name is none of a layer


def test_layers_are_counted_from_the_last_and_what_is_no_factor_is_above_them():
    assert body(1.0)([*NAMES, HEAD]) == set(NAMES[:4]) and head(1.0)([*NAMES, HEAD]) == {*NAMES[4:], HEAD}
    assert body(0.0)([*NAMES, HEAD]) == set(NAMES) and head(0.0)([*NAMES, HEAD]) == {HEAD}
    assert body(2.0)(NAMES) == set(NAMES[:2])
    for share, names, said in (
        (body(3.0), NAMES, "body:3 leaves clients all that trains"),
        (body(0.0), NAMES, "this model trains none; choose --share body:1"),
        (head(0.0), NAMES, "head:0 shares nothing, as this model trains no head"),
        (head(3.0), NAMES, "head:3 shares all that trains"),
    ):
        with pytest.raises(UserError, match=said):
            share(names)


# --- moments


def with_torch(model, client, start=None, steps=slice(None), trains=None):
    """AdamW of torch without an interruption, along the stacked model's gradients."""
    row = start_bank(model, 1).row(0) if start is None else start
    leaves = {name: t.clone().requires_grad_() for name, t in row.items() if name in (trains or row)}
    theirs = torch.optim.AdamW(list(leaves.values()), LR / 10, weight_decay=0.1)

    def step(row, gradients, number):
        for name, leaf in leaves.items():
            leaf.grad = gradients[name]
        theirs.step()
        return row | {name: leaf.detach().clone() for name, leaf in leaves.items()}

    return slowly(model, client, step, row, steps)


ADAMW = adam(LR / 10, weight_decay=0.1)


def test_rounds_of_diloco_with_one_client_are_torchs_adamw_without_interruption(model):
    algorithm = Algorithm(LR / 10, nesterov(0.0, lr=1.0, client_lr=LR / 10))
    adapter, _ = play(model, algorithm, (0,), ADAMW)
    close(adapter, with_torch(model, 0))
    forgetful, _ = play(model, algorithm, (0,), ADAMW, lasting=False)
    assert max((forgetful[name] - t).abs().max() for name, t in adapter.items()) > 1e-3


@pytest.mark.parametrize(
    "parts",
    [
        {"aggregator": flora(aggregator=weighted_mean)},
        {"trains": b(), "refactoring": fedsvd(aggregator=weighted_mean)},
    ],
    ids=["FLoRA", "FedSVD"],
)
def test_where_rounds_end_with_other_factors_each_begins_with_an_adamw_of_its_own(model, parts):
    algorithm = Algorithm(LR / 10, **parts)
    states = rounds(model, algorithm, (0, 1), ADAMW)
    assert not any(memory for _, memories in states for memory in memories.values())
    for number, ((before, _), (after, _)) in enumerate(pairwise(states)):
        model.fold(before.base)
        steps, trains = slice(number * STEPS, (number + 1) * STEPS), algorithm.trains(before.adapter, number)
        ways = [with_torch(model, k, before.adapter, steps, trains) for k in (0, 1)]
        for name_a, name_b in lora_pairs(before.adapter):
            old, new = (
                state.base.get(name_a.removesuffix(".lora_A.weight"), 0.0) for state in (before, after)
            )
            wanted = old + sum(way[name_b] @ way[name_a] for way in ways) / 2
            close({name_b: new + after.adapter[name_b] @ after.adapter[name_a]}, {name_b: wanted})
    model.fold({})


def test_a_personal_model_has_moments_of_its_own(model):
    _, personal = play(model, Algorithm(LR / 10, rule=ditto(0.0)), optimiser=ADAMW)
    for k in (0, 1):
        close(personal[k], with_torch(model, k))


def test_what_rests_in_fedreps_turns_keeps_its_moments(model):
    share = body(1.0)
    adapter, personal = play(model, Algorithm(LR / 10, share=share, rule=fedrep(1.0)), (0,), ADAMW)
    row, shared = start_bank(model, 1).row(0), share(adapter.keys())
    leaves = {name: t.clone().requires_grad_() for name, t in row.items()}
    both = [
        torch.optim.AdamW(
            [t for name, t in leaves.items() if (name in shared) is own], LR / 10, weight_decay=0.1
        )
        for own in (False, True)
    ]

    def step(row, gradients, number):
        for name, leaf in leaves.items():
            leaf.grad = gradients[name]
        both[number % STEPS].step()
        return {name: leaf.detach().clone() for name, leaf in leaves.items()}

    close(adapter | personal[0], slowly(model, 0, step))


def test_the_first_step_is_that_of_peft_and_torch(base, model):
    ours = train_locally(model, start_bank(model, 1), [work_of(model, 0)[:1]], LocalRules(ADAMW)).bank.row(0)
    make = lambda weights: torch.optim.AdamW(weights, LR / 10, weight_decay=0.1)  # noqa: E731
    close(ours, train_alone(base, LORA, DATA[0][:1], make)[0])
