"""The ServerApp: the rounds of `fedloom fed`, with clients that live behind Flower."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedloom.build import Parts, build, device_name, run_folder, versions
from fedloom.build_data import EVERYBODYS, SERVERS
from fedloom.config import FedConfig, UserError
from fedloom.config_flower import FlowerConfig
from fedloom.flower.run_config import from_run_config
from fedloom.observe.checkpoint import latest_checkpoint
from fedloom.observe.run_folder import Opened, opened, write_run_config
from fedloom.rounds import Afar, Progressed, play_round
from fedloom.run import drive, write_held
from fedloom.runs.inputs import Inputs
from fedloom.runtimes.flower.apps import make_server_app
from fedloom.runtimes.flower.courier import Courier, Delivery
from fedloom.runtimes.flower.fleet import Fleet
from fedloom.runtimes.flower.parcel import Parcel
from fedloom.runtimes.flower.rows import digest
from fedloom.startup import prepare_process


def serve(grid: Grid, run_config: dict[str, Any]) -> None:
    """Run the federation.

    Raises:
        UserError: A mistake of the user, too few clients, or a run whose numbers are no longer finite.
    """
    prepare_process()
    wanted = from_run_config(run_config)
    folder = run_folder(wanted)
    with opened(folder, wanted.of_the_run) as run:
        _run(grid, wanted, folder, run)
    print(f"Adapter: {latest_checkpoint(folder)}")


def _run(grid: Grid, wanted: FlowerConfig, folder: Path, run: Opened[FedConfig]) -> None:
    inputs = Inputs(run.inputs)
    holdings = EVERYBODYS if wanted.client_data is None else SERVERS
    config, parts = build(run.config, inputs=inputs, holdings=holdings)
    fleet = Fleet(
        grid, Parcel(), partial(_admit, digest(parts.model.initial), wanted.client_num), wanted.join_timeout
    )
    fleet.wait_for(wanted.client_num, wanted.clients_needed, strict=True)
    found = versions() | {"flwr": version("flwr")}
    write_run_config(folder, config, found, device_name(parts.model.device), inputs.found)
    if wanted.client_data is None:
        write_held(folder, parts)
    federation = _Federation(
        config, parts, fleet, Courier(fleet, wanted.round_timeout), wanted.clients_needed
    )
    drive(config, parts, folder, run.checkpoint, federation.play)


@dataclass(frozen=True)
class _Federation:
    """A round with the clients that are there."""

    config: FedConfig
    parts: Parts
    fleet: Fleet
    courier: Courier
    clients_needed: int

    def play(self, now: Progressed) -> tuple[Progressed, dict[str, Any]]:
        """`run.Play`."""
        traffic, delivery = replace(self.fleet.traffic), Delivery()
        self.fleet.wait_for(self.clients_needed, self.clients_needed, strict=False)
        train = partial(self.courier.train, drawn=now.drawn, delivery=delivery)
        after, row = play_round(self.config, self.parts, now, Afar(self.fleet.clients, train))
        row |= {
            "clients_left_out": sorted({*row["clients_left_out"], *delivery.lost, *delivery.refused}),
            "clients_lost": delivery.lost,
            "clients_refused": delivery.refused,
            "bytes_up": delivery.bytes_up,
            "bytes_down": delivery.bytes_down,
            "message_bytes_up": self.fleet.traffic.up - traffic.up,
            "message_bytes_down": self.fleet.traffic.down - traffic.down,
        }
        return after, row


def _admit(adapter: str, client_num: int, answer: Parcel) -> int:
    """The number of a client whose model is the server's.

    Raises:
        UserError: It is another.
    """
    client, found = answer.facts.get("client"), answer.facts.get("adapter")
    if type(client) is not int or not 0 <= client < client_num:
        raise UserError(
            f"a SuperNode gave {client!r} as its number of {client_num}; is its fedloom of another version?"
        )
    if found != adapter:
        raise UserError(
            f"client {client + 1} has another model or another fedloom than the server: "
            "their adapters differ in names or shapes"
        )
    return client


app = make_server_app(serve)
