"""The ServerApp: the rounds of `fedloom fed`, with clients that live behind Flower."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedloom.errors import UserError
from fedloom.federation.algorithm import BASE, with_prefix
from fedloom.federation.transport import ClientTransport
from fedloom.federation.update import Update
from fedloom.model.bank import Row
from fedloom.model.fingerprint import fingerprints
from fedloom.options.fed import FedConfig
from fedloom.options.flower import FlowerConfig
from fedloom.process import prepare_process
from fedloom.runs.checkpoint import latest_checkpoint
from fedloom.runs.files import write_atomically
from fedloom.runs.inputs import Inputs
from fedloom.runs.run_folder import Opened, opened, run_folder, write_run_config
from fedloom.runtimes.flower.apps import make_server_app
from fedloom.runtimes.flower.connected_clients import ConnectedClients
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.keys import KEYS_FILE, Keys
from fedloom.runtimes.flower.messages import quoted
from fedloom.runtimes.flower.messenger import Delivery, RoundMessenger
from fedloom.runtimes.flower.post import Post
from fedloom.runtimes.flower.rows import digest
from fedloom.training.default_bound import bounded
from fedloom.training.fed import drive, write_client_counts
from fedloom.training.fed_examples import ALL_CLIENTS, SERVER_ALONE
from fedloom.training.fed_rounds import ServerProgress, play_round
from fedloom.training.flower.client_sizes import ClientSizes
from fedloom.training.flower.run_config import from_run_config
from fedloom.training.flower.same_base import SERVERS, check_base
from fedloom.training.private import ExampleBudget, with_noise
from fedloom.training.provenance import device_name, versions
from fedloom.training.setup_fed import Parts, build, intervals


def serve(grid: Grid, run_config: dict[str, Any]) -> None:
    """Run the federation.

    Raises:
        UserError: A mistake of the user, too few clients, or a run whose numbers are no longer finite.
    """
    prepare_process()
    wanted, which_aggregator = bounded(from_run_config(run_config))
    if which_aggregator:
        print(which_aggregator, flush=True)
    folder = run_folder(wanted)
    with opened(folder, wanted.of_the_run) as run:
        _run(grid, wanted, folder, run)
    print(f"Adapter: {latest_checkpoint(folder)}")


def _run(grid: Grid, wanted: FlowerConfig, folder: Path, run: Opened[FedConfig]) -> None:
    inputs = Inputs(run.inputs)
    client_data = ALL_CLIENTS if wanted.client_data is None else SERVER_ALONE
    keys = _keys(wanted, folder)
    config, parts = build(with_noise(run.config), inputs=inputs, client_data=client_data)
    mine = {"adapter": digest(parts.model.initial), "reading": parts.data.reading}
    mine |= (base := fingerprints(config.model_name, parts.tokenizer))
    admit = partial(_admit, mine, wanted.client_num)
    connected = ConnectedClients(Post(grid), Content({SERVERS: base}), admit, wanted.join_timeout, keys)
    # Also after training: a client's process may have begun anew, and the model's files may be others.
    connected.check = lambda client, answer: check_base(base, client, answer.facts)
    if wanted.client_data is not None and isinstance(parts.budget, ExampleBudget):
        sizes = ClientSizes.of_the_run(folder, parts.budget)
        parts, connected.enter = replace(parts, budget=sizes.budget), sizes.enter
    connected.wait_for(wanted.client_num, wanted.clients_needed)
    found = versions() | {"flwr": version("flwr")}
    write_run_config(folder, config, found, device_name(parts.model.device), inputs.found)
    if wanted.client_data is None:
        write_client_counts(folder, parts)
    schedule = parts.schedule
    examples = schedule.batches * schedule.batch_size * schedule.epochs
    messenger = RoundMessenger(connected, wanted.round_timeout, examples, parts.algorithm)
    federation = _Federation(config.val_steps, folder, connected, messenger, wanted.clients_needed)
    drive(parts, intervals(config), folder, run.checkpoint, federation.play)


@dataclass(frozen=True)
class _Federation:
    """A round with the clients that are there."""

    checkpoint_every: int
    folder: Path
    connected: ConnectedClients
    messenger: RoundMessenger
    clients_needed: int

    def play(self, parts: Parts, now: ServerProgress) -> tuple[ServerProgress, dict[str, Any]]:
        """`run.Play`."""
        traffic, delivery = replace(self.connected.post.traffic), Delivery(taken=dict(now.taken))
        # A run is resumed from its last checkpoint, or from the one before, where the last proves unsound.
        checkpoints = now.server.round // self.checkpoint_every
        self.messenger.kept_from = max(0, checkpoints - 1) * self.checkpoint_every
        self.connected.wait_for(self.clients_needed, self.clients_needed)
        if self.connected.keys is not None and (known := self.connected.keys.begin()):
            write_atomically(self.folder / KEYS_FILE, json.dumps(known, indent=1) + "\n")
        base = with_prefix(BASE, now.server.base)

        def train(
            round_: int, clients: Sequence[int], trained: Row, rest: Row, rule: Row
        ) -> Iterable[Update]:
            return self.messenger.train(
                round_, clients, trained, rest | base, rule, now.drawn, delivery, now.server.clip
            )

        there = self.connected.clients
        if isinstance(parts.budget, ExampleBudget) and parts.budget.leaves_out:
            there = [client for client in there if parts.budget.may_spend(client, now.drawn)]
            if not there:
                raise UserError(
                    f"target_epsilon: {parts.budget.target:g} is spent by all clients that are there; go on "
                    "with others and resume=true, or be content with the last checkpoint"
                )
        after, row = play_round(parts, now, ClientTransport(there, train))
        # An answer whose numbers did not count is none; its client remembers what it did before.
        counted = set(row["clients"]) - set(row["clients_left_out"])
        taken = now.taken | {k: word for k, word in delivery.taken.items() if k in counted}
        after = replace(after, taken=taken if parts.first_memory else {})
        if delivery.forgot:
            row["clients_forgot"] = delivery.forgot
        row |= {
            "clients_left_out": sorted({*row["clients_left_out"], *delivery.lost, *delivery.refused}),
            "clients_lost": delivery.lost,
            "clients_refused": delivery.refused,
            "message_bytes_up": self.connected.post.traffic.up - traffic.up,
            "message_bytes_down": self.connected.post.traffic.down - traffic.down,
        }
        if parts.algorithm.privacy is None:  # else their number would tell how many were there
            row |= {"bytes_up": delivery.bytes_up, "bytes_down": delivery.bytes_down}
        return after, row


def _admit(mine: Mapping[str, str], client_num: int, answer: Content) -> int:
    """The number of a client whose model is the server's.

    Args:
        mine: What the server has, by the names that a client's answer has for it.
        client_num: How many clients there are.
        answer: What a client says of itself.

    Raises:
        UserError: It is another.
    """
    client = answer.facts.get("client")
    if type(client) is not int or not 0 <= client < client_num:
        raise UserError(
            f"a SuperNode gave {quoted(repr(client))} as its number of {client_num}; is its fedloom of "
            "another version?"
        )
    if "weights" not in answer.facts or answer.facts.get("adapter") != mine["adapter"]:
        raise UserError(
            f"client {client + 1} has another model or another fedloom than the server: "
            "their adapters differ in names or shapes, or it does not say what base it has"
        )
    check_base(mine, client, answer.facts)
    if answer.facts.get("reading") != mine["reading"]:
        raise UserError(
            f"client {client + 1} learns in another form than the server: its chat template is another, or "
            "one has preferences (chosen, rejected) and the other answers; give both the same "
            "model files, and data of one kind"
        )
    return client


def _keys(config: FlowerConfig, folder: Path) -> Keys | None:
    """Whose each client's number is."""
    if config.client_keys == "any":
        return None
    if config.client_keys != "first":
        return Keys.listed(config.client_keys, config.client_num)
    return Keys.of_the_run(folder) if config.resume else Keys()


app = make_server_app(serve)
