"""The options of attackers in a simulation, and their check; see `fedloom.federation.attacks`."""

import re
from dataclasses import dataclass
from typing import Any

from fedloom.errors import UserError, shown
from fedloom.options.declare import option
from fedloom.options.methods import ATTACK
from fedloom.options.parts import check_choice, listed


@dataclass(frozen=True, kw_only=True)
class SimulatedAttack:
    """Attackers in the simulation."""

    attack: str = option(
        "none", f"what attackers do, to try a defence: {listed('attack')}; see docs/robustness.md"
    )
    attackers: int | str | None = option(
        None,
        "how many attack, who is drawn by the seed; or their numbers from 1 with commas, as in 2,5 (2, is "
        "number 2 alone); none: one, where there is an attack",
        minimum=1,
        maximum=1_000_000,
    )

    @property
    def attacker_numbers(self) -> list[int]:
        """The numbers in `attackers`, from 1; none where it is a count."""
        return [int(w) for w in self.attackers.split(",") if w] if isinstance(self.attackers, str) else []


def check_attack(config: Any, clients: int) -> None:
    """Judge the attack, and who attacks.

    Args:
        config: Options of a run, with plugins loaded.
        clients: How many clients or peers there are.

    Raises:
        UserError: There is no such attack, nobody is honest, or there is no such client.
    """
    check_choice(ATTACK, config.attack)
    if config.attack == ATTACK.default:
        if config.attackers is not None:
            raise UserError(
                f"attackers: {shown(config.attackers)} given, and nothing that they do; choose an attack, as "
                "in --attack sign_flip, or leave attackers out"
            )
        return
    if getattr(config, "train_mode", "") == "local":
        raise UserError(
            f"attack: {config.attack} is a client's, and train_mode local has no clients; choose "
            "--train_mode fed, or leave attack out"
        )
    if isinstance(config.attackers, str):
        if not re.fullmatch(r"[0-9]{1,7}(,[0-9]{1,7})*,?", config.attackers):
            raise UserError(
                f"attackers: {shown(config.attackers)} is neither a number of clients nor the numbers of "
                "some with commas between; write for example 2, or 2,5"
            )
        numbers = config.attacker_numbers
        if len(set(numbers)) < len(numbers) or not all(1 <= number <= clients for number in numbers):
            raise UserError(
                f"attackers: {config.attackers} must name different ones of {clients} clients, from 1 to "
                f"{clients}"
            )
    count = len(config.attacker_numbers) or config.attackers or 1
    if count >= clients:
        raise UserError(
            f"attackers: {count} of {clients} clients leave nobody honest; give fewer, or more clients"
        )
