"""What a private run tells: epsilon, and nothing of clients or examples that has no noise."""

from __future__ import annotations

import importlib.util
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fedloom.client.private import ExamplePrivacy, rate_of
from fedloom.client.work import Schedule
from fedloom.errors import UserError
from fedloom.federation.privacy.account import Account, find_noise
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.peer import PeerConfig
from fedloom.options.privacy import delta_of
from fedloom.runs.checkpoint import round_of
from fedloom.runs.files import write_atomically
from fedloom.runs.metrics import read_rows
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runtimes.group import Group

log = logging.getLogger(__name__)

C = TypeVar("C", FedConfig, DflConfig, PeerConfig)
B = TypeVar("B", bound=Any)

LOST_FILE = "privacy.json"
"""In a run's folder: how many rounds were told and then lost, where it was killed after its checkpoint."""

_UNPROTECTED = (
    "train_loss",
    "train_accuracy",
    "tokens",
    "clients",
    "clients_left_out",
    "clients_lost",
    "clients_refused",
    "clients_forgot",
    "message_bytes_up",
    "message_bytes_down",
    "bytes_between_ranks",
    "attackers",
)
"""What a row says of the clients of its round without noise: how they did, who they were, how many."""

_OF_EXAMPLES = ("train_loss", "train_accuracy", "tokens", "peer_train_loss")
"""What would say without noise how clients' examples did, or how many a step had."""

_MOST_ACCOUNTS = 64
"""Clients of as many sizes are accounted for one by one; of more the one that spends most is."""


@dataclass(frozen=True)
class UserBudget:
    """Of user-level privacy: ε is a function of the round.

    Attributes:
        account: ε of a number of rounds.
        target: The largest ε; None: none is.
        seed: Of the noise; None: a secret one, new at every start.
        lost: Rounds that were told, lost with the process, and are played again with other noise.
    """

    account: Account
    target: float | None
    seed: int | None
    lost: int = 0

    def epsilon(self, round_: int) -> float:
        """ε once so many rounds are done."""
        return self.account.epsilon(round_ + self.lost)

    def row(self, row: Mapping[str, Any], drawn: Sequence[int]) -> dict[str, Any]:
        """A round's row as it may be told, and what has been spent by its end.

        Args:
            row: All that is known of the round.
            drawn: Batches that each client has drawn by its end; serves `ExampleBudget`.
        """
        public = {name: value for name, value in row.items() if name not in _UNPROTECTED}
        return public | {"epsilon": self.epsilon(row["round"])}

    def reason_to_stop(self, round_: int, drawn: Sequence[int]) -> str | None:
        """Why there is no round after so many; None where there may be one."""
        return _beyond(self.target, self.epsilon(round_ + 1), round_)


@dataclass(frozen=True)
class ExampleBudget:
    """Of example-level privacy: each client spends by its own steps.

    Attributes:
        sizes: Examples of each client.
        schedules: What each does in a round.
        noise: z.
        delta: δ, of all clients.
        kind: See `Account`.
        target: The largest ε of a client; None: none is.
        peers: Whether each one's ε is told.
        seed, lost: See `UserBudget`.
    """

    sizes: Sequence[int]
    schedules: Sequence[Schedule]
    noise: float
    delta: float
    kind: Literal["pld", "rdp"]
    target: float | None
    peers: bool
    seed: int | None
    lost: int = 0
    _accounts: dict[float, Account] = field(default_factory=dict)

    def row(self, row: Mapping[str, Any], drawn: Sequence[int]) -> dict[str, Any]:
        """See `UserBudget`."""
        public = {name: value for name, value in row.items() if name not in _OF_EXAMPLES}
        spent = self._spent(drawn)
        public |= {"epsilon": self._largest(spent), "delta": self.delta}
        if self.peers and len(set(spent)) <= _MOST_ACCOUNTS:
            public["peer_epsilon"] = [self._epsilon(*one) for one in spent]
        return public

    def reason_to_stop(self, round_: int, drawn: Sequence[int]) -> str | None:
        """See `UserBudget`."""
        after = [n + schedule.batches for n, schedule in zip(drawn, self.schedules, strict=True)]
        return (
            None if self.target is None else _beyond(self.target, self._largest(self._spent(after)), round_)
        )

    def _spent(self, drawn: Sequence[int]) -> list[tuple[float, int]]:
        """The rate of each client, and the steps that it has taken."""
        return [
            (rate_of(size, schedule.per_step), (n // schedule.batches + self.lost) * schedule.steps)
            for size, schedule, n in zip(self.sizes, self.schedules, drawn, strict=True)
        ]

    def _largest(self, spent: Sequence[tuple[float, int]]) -> float:
        """ε grows with both: who has less of either than another need not be asked."""
        found, most = 0.0, -1
        for rate, steps in sorted(set(spent), reverse=True):
            if steps > most:
                found, most = max(found, self._epsilon(rate, steps)), steps
        return found

    def _epsilon(self, rate: float, steps: int) -> float:
        account = self._accounts.setdefault(rate, Account(rate, self.noise, self.delta, self.kind))
        return account.epsilon(steps)


Budget = UserBudget | ExampleBudget
"""What a run's rounds cost, and how much they may."""


def _beyond(target: float | None, cost: float, round_: int) -> str | None:
    if target is None or cost <= target:
        return None
    which = "another" if round_ else "the first"
    return f"{which} round would cost epsilon {cost:.4g}, and target_epsilon is {target:g}"


def with_noise(config: C) -> C:
    """The options, with numbers for the noise and delta that are auto where they follow from options alone.

    Raises:
        UserError: No noise comes to the target, or dp-accounting is missing.
    """
    if config.privacy == "none":
        return config
    if importlib.util.find_spec("dp_accounting") is None:
        raise UserError("privacy: dp-accounting is missing; pip install 'fedloom[privacy]'")
    if config.privacy_seed is not None:
        log.warning(
            "privacy_seed: whoever knows or guesses %d can take the noise away; leave it out wherever data "
            "are to be protected",
            config.privacy_seed,
        )
    if not isinstance(config, FedConfig) or config.privacy == "example":
        return config
    delta, noise = delta_of(config.delta, config.client_num, "clients"), config.noise_multiplier
    if noise == "auto":
        assert config.target_epsilon is not None
        rate = config.client_num_per_step / config.client_num
        noise = find_noise(config.target_epsilon, config.max_steps, rate, delta, config.accountant)
        log.info("noise_multiplier %g for %d rounds", noise, config.max_steps)
    return replace(config, noise_multiplier=noise, delta=delta)


def user_budget(config: FedConfig) -> UserBudget | None:
    """What the run may cost; None where a client asks, which adds no noise."""
    if config.noise_multiplier == "auto":
        return None
    delta = delta_of(config.delta, config.client_num, "clients")
    rate = config.client_num_per_step / config.client_num
    account = Account(rate, config.noise_multiplier, delta, config.accountant)
    return UserBudget(account, config.target_epsilon, config.privacy_seed)


def example_budget(
    config: Any, sizes: Sequence[int], schedules: Sequence[Schedule], *, peers: bool
) -> ExampleBudget:
    """What the clients may spend.

    Args:
        config: Options of a run.
        sizes: Examples of each client.
        schedules: What each does in a round.
        peers: Whether each one's ε is told.

    Raises:
        UserError: delta is too large, or the target too small for one round.
    """
    whose = "examples of the largest client" if len(sizes) > 1 else "examples"
    delta = delta_of(config.delta, max(1, *sizes), whose)
    budget = ExampleBudget(
        sizes,
        schedules,
        config.noise_multiplier,
        delta,
        config.accountant,
        config.target_epsilon,
        peers,
        config.privacy_seed,
    )
    if reason := budget.reason_to_stop(0, [0] * len(sizes)):
        raise UserError(
            f"target_epsilon: {reason}; set a larger one, more noise_multiplier, or fewer local steps"
        )
    return budget


def example_privacy(config: Any) -> ExamplePrivacy | None:
    """How the options let clients hide their examples; None where they do not."""
    if getattr(config, "privacy", "none") != "example":
        return None
    clip, _ = config.clip_bound
    key = secret_key() if config.privacy_seed is None else config.privacy_seed
    return ExamplePrivacy(clip, config.noise_multiplier, key)


def lost_rounds(folder: Path, checkpoint: Path | None) -> int:
    """How many rounds of a run were told and are no more in its checkpoint, at this start or before.

    The count is kept before the rows are cut off, so that it is too large rather than too small. A round that
    clients elsewhere were asked for (`asks_for`) counts without a row, too: some may have answered.

    Raises:
        Damaged: The file that keeps it is none.
    """
    done = 0 if checkpoint is None else round_of(checkpoint)
    kept = read_mapping(folder / LOST_FILE)
    before, asked = (_count(folder, kept, name) for name in ("rounds_lost", "round_asked_for"))
    rounds = [row["round"] for row in read_rows(folder)]
    lost = before + sum(round_ > done for round_ in rounds) + (asked > max([done, *rounds]))
    if lost > before:
        write_atomically(folder / LOST_FILE, json.dumps({"rounds_lost": lost}) + "\n")
        log.warning("epsilon counts %d rounds that were lost and are played again with other noise", lost)
    return lost


def _count(folder: Path, kept: Mapping[str, Any], name: str) -> int:
    found = kept.get(name, 0)
    if type(found) is not int or found < 0:
        raise Damaged(folder / LOST_FILE, f"{name} is {str(found)[:40]!r}")
    return found


def asks_for(folder: Path, round_: int) -> None:
    """Keep, before clients elsewhere are asked for a round, that they will have been."""
    kept = {name: n for name, n in read_mapping(folder / LOST_FILE).items() if name == "rounds_lost"}
    write_atomically(folder / LOST_FILE, json.dumps(kept | {"round_asked_for": round_}) + "\n")


def with_lost(budget: B, folder: Path, checkpoint: Path | None, group: Group) -> B:
    """A budget that counts the rounds that were lost; with a seed they are played again as they were.

    Args:
        budget: The run's.
        folder: The run's.
        checkpoint: Where the run goes on from.
        group: The run's processes.
    """
    if budget.seed is not None:
        return budget
    lost = group.together(lambda: lost_rounds(folder, checkpoint) if group.rank == 0 else 0)
    return replace(budget, lost=group.share(lost))


def secret_key() -> int:
    """A key that nobody can guess, from the operating system."""
    return secrets.randbits(256)
