"""What aggregating products adds to a round: processor time of the server's part, of that of the whole round.

    python benchmarks/aggregation.py --data_name ChilleD/MultiArith --data_dir FOLDER

The clients train once, from one adapter; then every method is given what they sent, and plays its server's
part of the round, with what the base's change costs before the next one. Printed is by how much that is more
than FedAvg's, in per cent of FedAvg's whole round. It is processor time of this process, on all of its
threads, so that others on the machine do not count; the shortest of some turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from fedloom.process import prepare_process

prepare_process()

from fedloom.client.work import plan_work  # noqa: E402
from fedloom.errors import UserError  # noqa: E402
from fedloom.federation.server import initial_state  # noqa: E402
from fedloom.federation.transport import ClientTransport  # noqa: E402
from fedloom.federation.update import Update  # noqa: E402
from fedloom.options.fed import FedConfig  # noqa: E402
from fedloom.runtimes.in_process import run_clients  # noqa: E402
from fedloom.training.algorithms import algorithm_with_server  # noqa: E402
from fedloom.training.fed_rounds import ServerProgress, play_round  # noqa: E402
from fedloom.training.setup_fed import Parts, build  # noqa: E402

T = TypeVar("T")

METHODS = {
    "FedAvg": {"method": "FedAvg"},
    "FedEx-LoRA": {"method": "FedEx-LoRA"},
    "FedEx-LoRA, residual_rank 16": {"method": "FedEx-LoRA", "residual_rank": 16},
    "FLoRA": {"method": "FLoRA"},
    "FlexLoRA": {"method": "FlexLoRA"},
    "LoRA-FAIR": {"method": "LoRA-FAIR"},
    "HetLoRA": {"method": "HetLoRA"},
}


def trained(parts: Parts) -> list[Update]:
    """What all clients send after a round."""
    adapter = parts.model.initial
    work = [
        plan_work(
            parts.data.train,
            indices,
            parts.schedule,
            parts.model.layout,
            seed=parts.seed,
            client=client,
            round_=0,
            drawn=0,
        )
        for client, indices in enumerate(parts.data.clients)
    ]
    updates = run_clients(parts.model, adapter, work, parts.rules, parts.algorithm, seed=parts.seed)
    # A payload is a view of its wave.
    return [replace(u, payload={name: t.clone() for name, t in u.payload.items()}) for u in updates]


def server_seconds(parts: Parts, updates: Sequence[Update]) -> float:
    """Processor time of a server's part of the round, and of what the next one begins with."""
    transport = ClientTransport(range(len(updates)), lambda *_: updates)
    start = ServerProgress(initial_state(parts.model.initial, parts.algorithm), [0] * len(updates))
    parts.model.fold(start.server.base)

    def play() -> None:
        after, _ = play_round(parts, start, transport)
        parts.model.fold(after.server.base)

    seconds, _ = timed(play)
    parts.model.fold({})
    return seconds


def timed(work: Callable[[], T]) -> tuple[float, T]:
    began = time.process_time()
    done = work()
    return time.process_time() - began, done


def main(arguments: list[str] | None = None) -> int:
    """Measure and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model_name", default="smollm2-135m")
    parser.add_argument("--data_name", default="arithmetic")
    parser.add_argument("--data_dir")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--client_num", type=int, default=50)
    parser.add_argument("--client_batch_per_step", type=int, default=4, help="batches, each a step")
    parser.add_argument("--lora_r", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    own = {name: value for name, value in vars(options).items() if name != "repeats"}
    own |= {"train_mode": "fed", "client_num_per_step": options.client_num, "grad_accum_steps": 1}
    try:
        config, parts = build(FedConfig(**own, dtype="float32"))
        ways = {
            name: replace(parts, algorithm=algorithm_with_server(FedConfig(**own, **more)))
            for name, more in METHODS.items()
        }
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    training, updates = timed(lambda: trained(ways["FedAvg"]))
    taken = {
        name: min(server_seconds(its_parts, updates) for _ in range(options.repeats))
        for name, its_parts in ways.items()
    }
    whole = training + taken["FedAvg"]
    tokens = sum(update.tokens for update in updates)
    print(
        f"{config.model_name}, {config.data_name}: a round of {len(updates)} clients, rank {config.lora_r}, "
        f"{tokens:,} tokens: {whole:.1f} s of processor time with FedAvg\n"
    )
    print("| method | seconds of the server | added to a round |\n| --- | --: | --: |")
    for name, seconds in taken.items():
        print(f"| {name} | {seconds:.2f} | {(seconds - taken['FedAvg']) / whole:.1%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
