"""`fedloom flower`: the rounds of `fedloom fed` with clients behind Flower, deployed as the page says."""

import dataclasses
import json
import math
import re
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_files import adapter, rows, write_rows

if find_spec("flwr") is None:
    pytest.skip("flwr is not installed", allow_module_level=True)


import torch
from flower_loopback import NGINX, Loopback, wait_until
from tiny import save_tiny_llama

import fedloom.training.fed_rounds
from fedloom.commands.cli import main
from fedloom.options.fed import FedConfig
from fedloom.training.setup_fed import build

pytestmark = pytest.mark.deploy

KILLED = 1  # client 2 as people count
ROUNDS = 3
# No live client takes so long, on a busy machine either.
DEPLOYED = "--client_data node --min_clients 2 --round_timeout 600 --join_timeout 200"
# Only what trained changes, so that a client lacks now one layer, now another.
FOCUS = {
    "train_mode": "fedGradFocus",
    "layer_policy": "random",
    "max_layer_num": 2,
    "min_layer_num": 0,
    "server_data_fraction": 0.2,
    "server_grad_scale": 0.0,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_llama(folder / "llama", num_hidden_layers=4)
    for part, count in (("train", 40), ("validation", 8), ("test", 4)):
        write_rows(
            folder / "pears" / f"{part}.jsonl",
            [
                {"question": f"Ann has {i} pears and finds {i % 7} {part[0]}.", "final_ans": i + i % 7}
                for i in range(count)
            ],
        )
    return folder


def config_of(inputs, out_dir, name, **options):
    return FedConfig(
        **{
            "exp_name": name,
            "out_dir": str(out_dir),
            "model_name": str(inputs / "llama"),
            "data_name": "ChilleD/MultiArith",
            "data_dir": str(inputs / "pears"),
            "client_num": 3,
            "client_num_per_step": 3,
            "client_batch_per_step": 4,
            "client_lr": 0.05,
            "lr": 0.003,  # Adam divides rounding, too, by the size of the gradient
            "lora_r": 64,
            "max_steps": ROUNDS,
            "val_steps": 1,
            "patience": 0,
            "dtype": "float32",
            "wave_tokens": 2000,
            "report_to": "none",
            "aggregator": "norm_bound",  # the default over Flower
            **options,
        }
    )


def flags(config, *more):
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    return [*(word for name, value in given.items() for word in (f"--{name}", str(value))), *more]


def assert_same_adapters(ours, theirs, rounds=ROUNDS):
    before = None
    for round_ in range(1, rounds + 1):
        mine, other = adapter(ours, round_), adapter(theirs, round_)
        assert mine.keys() == other.keys()
        for name in mine:
            # FedAdam divides by the root of what it has seen, so a rounding of a small gradient shows.
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-5)
        assert before is None or any(not torch.equal(mine[name], before[name]) for name in mine)
        before = mine


def train_in_process(config, lost_from=math.inf):
    """`fedloom fed`, where from a round on a client's answer counts no longer."""
    run = fedloom.training.fed_rounds.run_clients

    def lossy(model, trained, work, *more, **named):
        work = list(work)
        late = [key[0] >= lost_from for client in work for key in [client.steps[0][0].key]]
        for update, lost in zip(run(model, trained, work, *more, **named), late, strict=True):
            yield dataclasses.replace(update, loss=math.nan) if lost and update.client == KILLED else update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedloom.training.fed_rounds, "run_clients", lossy)
        assert main(["fed", *flags(config)]) == 0
    return Path(config.out_dir) / config.exp_name


def deal_out(config, inputs, folder):
    """The data as `fedloom fed` splits them: a folder for the server and one for each client."""
    _, parts = build(config)
    given = [json.loads(line) for line in (inputs / "pears" / "train.jsonl").read_text().splitlines()]
    assert len(given) == len(parts.data.train)
    write_rows(folder / "server" / "train.jsonl", [given[i] for i in parts.data.server])
    shutil.copy(inputs / "pears" / "validation.jsonl", folder / "server")
    shutil.copy(inputs / "pears" / "test.jsonl", folder / "server")
    for client, indices in enumerate(parts.data.clients, start=1):
        write_rows(folder / f"client_{client}" / "train.jsonl", [given[i] for i in indices])


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    net = Loopback(tmp_path_factory.mktemp("loopback"))
    try:
        yield net
    finally:
        net.stop()


@pytest.fixture(scope="module")
def killed(inputs, net):
    """Three rounds of gradient priority, each client with data of its own; one is killed in round 2.

    No round ends by the clock: the owner unregisters the dead client, and so nobody who lives can be late.
    """
    superlink = net.start_superlink()
    config = config_of(inputs, net.folder / "runs", "focus", **FOCUS)
    deal_out(config, inputs, net.folder)
    theirs = dataclasses.replace(config, data_dir=str(net.folder / "server"))
    options = DEPLOYED.split()
    options += ["--client_keys", str(net.folder / "key{i}.pub"), "--hub_url", f"http://127.0.0.1:{net.hub}"]
    options += ["--signing_key", str(net.new_key("owner", "ed25519"))]
    assert main(["flower", *flags(theirs, *options, "--output_path", str(net.folder / "federation"))]) == 0
    keys = [net.new_key(f"key{client}") for client in (1, 2, 3)]
    if NGINX:
        net.start_nginx()
    trusted = net.folder / "federation" / "signed" / "trusted-entities.yaml" if NGINX else None
    wait_until(lambda: "startup complete" in net.said("superlink"), 200)
    for key in keys:
        net.flwr("supernode", "register", f"{key}.pub")
    nodes = [
        net.start_supernode(
            f"node{k}", f'client={k} data-path="client_{k}"', key=keys[k - 1], trusted=trusted
        )
        for k in (1, 2, 3)
    ]
    net.flwr("run", "@fedloom/fedloom-focus==1.0.0" if NGINX else "federation")
    reference = train_in_process(config_of(inputs, net.folder / "alone", "focus", **FOCUS), lost_from=1)
    folder = net.folder / "runs" / "focus"

    def well():
        return (
            superlink.poll() is None
            and all(node.poll() is None for k, node in enumerate(nodes) if k != KILLED)
            and "fedloom: error" not in net.said("superlink")
        )

    wait_until(lambda: (folder / "metrics.jsonl").exists() and len(rows(folder)) > 1, 300, well)
    nodes[KILLED].send_signal(signal.SIGKILL)
    alone = ("--isolation", "process")  # without the processes that would run its apps
    strangers = {
        "stranger": net.start_supernode("stranger", "client=1", *alone, key=net.new_key("unknown")),
        "plaintext": net.start_supernode("plaintext", "client=1", *alone, tls=False),
    }
    # All are asked at once: what one has got has been sent to the dead one too.
    wait_until(lambda: net.said("node1").count("Receiving: train") > 1, 200, well)
    dead = re.search(r"SuperNode ID: (\d+)", net.said(f"node{KILLED + 1}"))[1]
    net.flwr("supernode", "unregister", dead)
    wait_until(lambda: (folder / "summary.json").exists(), 300, well)
    return folder, reference, strangers


def test_a_round_ends_when_a_client_that_was_killed_is_unregistered(killed):
    after = rows(killed[0])[1:]
    assert [row["clients"] for row in after] == [[0, 1, 2], [0, 1, 2], [0, 2]]
    assert [row["clients_lost"] for row in after] == [[], [KILLED], []]
    assert [row["clients_left_out"] for row in after] == [[], [KILLED], []]


def test_clients_with_their_own_data_do_what_one_process_does(killed):
    assert_same_adapters(*killed[:2])
    for mine, other in zip(rows(killed[0]), rows(killed[1]), strict=True):
        for name in {"val_loss", "val_accuracy", "train_loss", "tokens", "selected_layers"} & other.keys():
            assert mine[name] == pytest.approx(other[name], rel=2e-6, abs=1e-6), name


def test_bytes_of_the_metrics_are_those_of_the_messages(killed):
    for row in rows(killed[0])[1:]:
        for way in ("up", "down"):
            assert row[f"bytes_{way}"] == pytest.approx(row[f"message_bytes_{way}"], rel=0.05), row


def test_clients_get_what_has_changed_and_send_what_they_trained(killed):
    after = rows(killed[0])[1:]
    start = adapter(killed[0], 1)

    def size(layers):
        named = (f".layers.{layer}." for layer in layers)
        return sum(t.numel() * 4 for part in named for name, t in start.items() if part in name)

    first, second, third = (row["selected_layers"] for row in after)
    mask = 2  # one bit for each of 16 parameters
    everything = size(range(4))
    assert [row["bytes_up"] for row in after] == [3 * size(first), 2 * size(second), 2 * size(third)]
    assert [row["bytes_down"] for row in after] == [
        3 * (everything + mask),
        3 * (size(first) + mask),
        2 * (size(second) + mask),
    ]


@pytest.fixture(scope="module")
def at_once(killed, inputs, net):
    """On what is left of the federation and a new client: noise, secure sums, a bound, and two bytes."""
    config = config_of(
        inputs,
        net.folder / "runs",
        "at-once",
        **{"train_mode": "fed", "max_steps": 1, "lora_r": 2048, "aggregator": "auto"},
        **{"privacy": "user", "clip": 0.5, "noise_multiplier": 0.5, "privacy_seed": 2, "accountant": "rdp"},
        **{"secure_aggregation": 0.05, "compress": "int8"},
    )
    deal_out(config, inputs, net.folder)
    options = [*DEPLOYED.split(), "--hub_url", f"http://127.0.0.1:{net.hub}", "--signing_key"]
    options += [str(net.folder / "owner"), "--output_path", str(net.folder / "second")]
    assert main(["flower", *flags(config, *options)]) == 0
    signed = net.folder / "federation" / "signed"  # where nginx looks
    shutil.copytree(net.folder / "second" / "signed", signed, dirs_exist_ok=True)
    key = net.new_key("key4")
    net.flwr("supernode", "register", f"{key}.pub")
    trusted = signed / "trusted-entities.yaml" if NGINX else None
    net.start_supernode("node4", 'client=2 data-path="client_2"', key=key, trusted=trusted)
    wait_until(lambda: "SuperNode ID" in net.said("node4"), 200)
    before = net.counted.sent + net.counted.answered
    net.flwr("run", "@fedloom/fedloom-at-once==1.0.0" if NGINX else "second")
    reference = train_in_process(dataclasses.replace(config, out_dir=str(net.folder / "alone")))
    folder = net.folder / "runs" / "at-once"
    wait_until(lambda: (folder / "summary.json").exists(), 500)
    return folder, reference, net.counted.sent + net.counted.answered - before


def test_all_at_once_is_what_one_process_does_with_the_bytes_at_the_sockets(at_once):
    ours, theirs, sockets = at_once
    mine, other = adapter(ours), adapter(theirs)
    for name, t in other.items():
        torch.testing.assert_close(mine[name], t, rtol=0, atol=1e-5)
    assert [row["epsilon"] for row in rows(ours)] == [row["epsilon"] for row in rows(theirs)]
    # The rest is TLS, the app, the shares of the masks' secrets, and asking for work once in a while.
    (told,) = rows(ours)[1:]
    assert sockets == pytest.approx(told["bytes_up"] + told["bytes_down"], rel=0.05)


@pytest.mark.parametrize("who", ["stranger", "plaintext"])
def test_a_supernode_without_a_known_key_or_without_tls_is_refused(killed, net, who):
    process = killed[2][who]
    wait_until(lambda: process.poll() is not None, 200)
    assert process.returncode != 0
    assert "Failed to initialize the connection" in net.said(who)
    assert "SuperNode ID" not in net.said(who)
