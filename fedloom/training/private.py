"""What a private run tells: epsilon, and nothing of clients or examples that has no noise."""

from __future__ import annotations

import importlib.util
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from fedloom.client.private import ExamplePrivacy, rate_of
from fedloom.client.work import Schedule
from fedloom.errors import UserError
from fedloom.federation.privacy.account import Account, find_noise
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.peer import PeerConfig
from fedloom.options.privacy import delta_of

log = logging.getLogger(__name__)

C = TypeVar("C", FedConfig, DflConfig, PeerConfig)

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
        sizes: Examples of each client; 0: not known yet.
        schedules: What each does in a round.
        noise: z.
        delta: δ, of all clients.
        kind: See `Account`.
        target: The largest ε of a client; None: none is.
        peers: Whether each one's ε is told.
        seed, lost: See `UserBudget`.
        leaves_out: Whether who has spent the target is left out of rounds, for others to go on; else the
            first of them ends the run.
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
    leaves_out: bool = False
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
        if self.target is None:
            return None
        spent = self._spent(self._after(drawn))
        if self.leaves_out:
            return _beyond(self.target, min((self._epsilon(*one) for one in spent), default=0.0), round_)
        return _beyond(self.target, self._largest(spent), round_)

    def may_spend(self, client: int, drawn: Sequence[int]) -> bool:
        """Whether a client, whose size is known, keeps to the target in another round."""
        if self.target is None:
            return True
        after, schedule = self._after(drawn)[client], self.schedules[client]
        return self._epsilon(*self._of_one(self.sizes[client], schedule, after)) <= self.target

    def _after(self, drawn: Sequence[int]) -> list[int]:
        return [n + schedule.batches for n, schedule in zip(drawn, self.schedules, strict=True)]

    def _spent(self, drawn: Sequence[int]) -> list[tuple[float, int]]:
        """The rate of each client, and the steps that it has taken; of those whose size is not known none."""
        return [
            self._of_one(size, schedule, n)
            for size, schedule, n in zip(self.sizes, self.schedules, drawn, strict=True)
            if size
        ]

    def _of_one(self, size: int, schedule: Schedule, drawn: int) -> tuple[float, int]:
        steps = (drawn // schedule.batches + self.lost) * schedule.steps
        return rate_of(size, schedule.per_step), steps

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
    delta = delta_of(config.delta, max([1, *sizes]), whose)
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


def secret_key() -> int:
    """A key that nobody can guess, from the operating system."""
    return secrets.randbits(256)
