"""What a run with user-level privacy tells: epsilon, and nothing of clients that has no noise."""

from __future__ import annotations

import importlib.util
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedloom.errors import UserError
from fedloom.federation.privacy.account import Account, find_noise
from fedloom.options.fed import FedConfig
from fedloom.options.privacy import delta_of
from fedloom.runs.checkpoint import round_of
from fedloom.runs.files import write_atomically
from fedloom.runs.reading import Damaged, read_mapping
from fedloom.runs.rows import read_rows

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class Budget:
    """What a run's rounds cost, and how much they may.

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

    def row(self, row: Mapping[str, Any], clip: float) -> dict[str, Any]:
        """A round's row as it may be told.

        Args:
            row: All that is known of the round.
            clip: Its largest norm of a change.
        """
        told = {name: value for name, value in row.items() if name not in _UNPROTECTED}
        return told | {"epsilon": self.epsilon(row["round"]), "clip": clip}

    def reason_to_stop(self, round_: int) -> str | None:
        """Why there is no round after so many; None where there may be one."""
        if self.target is None or (cost := self.epsilon(round_ + 1)) <= self.target:
            return None
        return f"another round would cost epsilon {cost:.4g}, and target_epsilon is {self.target:g}"


def with_noise(config: FedConfig) -> FedConfig:
    """The options, with numbers for the noise and delta that are auto.

    Raises:
        UserError: No noise comes to the target, the rounds cost more than it, or dp-accounting is missing.
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
    rate, delta = config.client_num_per_step / config.client_num, delta_of(config)
    noise, target = config.noise_multiplier, config.target_epsilon
    if noise == "auto":
        assert target is not None
        noise = find_noise(target, config.max_steps, rate, delta, config.accountant)
        log.info("noise_multiplier %g: %d rounds cost epsilon %g", noise, config.max_steps, target)
    return replace(config, noise_multiplier=noise, delta=delta)


def budget_of(config: FedConfig) -> Budget | None:
    """What the run may cost; None where nothing is hidden, or who asks adds no noise."""
    if config.privacy == "none" or config.noise_multiplier == "auto":
        return None
    rate = config.client_num_per_step / config.client_num
    account = Account(rate, config.noise_multiplier, delta_of(config), config.accountant)
    return Budget(account, config.target_epsilon, config.privacy_seed)


def lost_rounds(folder: Path, checkpoint: Path | None) -> int:
    """How many rounds of a run were told and are no more in its checkpoint, at this start or before.

    The count is kept before the rows are cut off, so that it is too large rather than too small.

    Raises:
        Damaged: The file that keeps it is none.
    """
    done = 0 if checkpoint is None else round_of(checkpoint)
    before = read_mapping(folder / LOST_FILE).get("rounds_lost", 0)
    if type(before) is not int or before < 0:
        raise Damaged(folder / LOST_FILE, f"rounds_lost is {str(before)[:40]!r}")
    lost = before + sum(row["round"] > done for row in read_rows(folder))
    if lost > before:
        write_atomically(folder / LOST_FILE, json.dumps({"rounds_lost": lost}) + "\n")
        log.warning("epsilon counts %d rounds that were lost and are played again with other noise", lost)
    return lost


def secret_key() -> int:
    """A key that nobody can guess, from the operating system."""
    return secrets.randbits(256)
