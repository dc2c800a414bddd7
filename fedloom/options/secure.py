"""The option of secure aggregation; see docs/privacy.md."""

from dataclasses import dataclass
from typing import Any

from fedloom.errors import UserError, shown
from fedloom.options.declare import option
from fedloom.options.methods import PARTS, chosen

FEWEST = 3
"""Clients of a round: of two, each would know the other's change."""

MOST_OF_INT8 = 127
"""Clients of whom each has 127 steps from 0 to the largest number in a sum of 16 bits: 2¹⁵ / 127 = 258, and
the steps of one are a power of 2, up to half as many.
"""


@dataclass(frozen=True, kw_only=True)
class SecureAggregation:
    """Secure aggregation."""

    secure_aggregation: float | None = option(
        None,
        "the server learns the sum of the clients' changes and no single one; the number is the largest "
        "change of a parameter in a round, beyond which it is cut, such as 1; with compress int8, whose "
        "steps are of this number, near the largest that there is, such as 0.01; with privacy user the clip "
        "where that is smaller; none: off. In `fedloom fed` the same sum of whole numbers, without masks",
        above=0,
        maximum=1e6,
    )


def check_secure(config: Any) -> None:
    """Judge secure aggregation beside the other options.

    Raises:
        UserError: Something needs what clients send one by one, or there are too few to hide among.
    """
    if config.secure_aggregation is None:
        return
    given = f"secure_aggregation: {config.secure_aggregation:g}"
    if config.train_mode == "local":
        raise UserError(f"{given} hides what clients send, and train_mode local has none; leave it out")
    if config.client_num_per_step < FEWEST:
        raise UserError(
            f"{given} hides a client among those of its round, and client_num_per_step is "
            f"{config.client_num_per_step}; it takes {FEWEST} or more"
        )
    if len(set(config.ranks)) > 1:
        raise UserError(
            f"{given} adds up changes of one shape, and lora_r {config.lora_r} gives clients ranks of their "
            "own; choose one rank"
        )
    if config.privacy != "none" and (config.clip is not None and str(config.clip).startswith("adaptive")):
        raise UserError(
            f"{given}, and clip {config.clip} asks every client whether it was within the clip; give a "
            "number, such as --clip 0.5"
        )
    clients = config.client_num if config.privacy == "user" else config.client_num_per_step
    if chosen(config)["compress"] == "int8" and clients > MOST_OF_INT8:
        raise UserError(
            f"compress: int8 beside secure_aggregation adds up numbers of two bytes, which leave each of "
            f"{clients} clients fewer steps than int8 has; choose --compress none, or at most "
            f"{MOST_OF_INT8} clients"
        )
    defaults = {part.option: part.default for part in PARTS}
    texts = chosen(config)
    for name, why in (
        ("aggregator", "looks at clients' changes one by one"),
        ("lora_aggregation", "combines products of single clients' factors"),
        ("compress", "sends something else than whole numbers that can be added up"),
    ):
        # FedSVD and Fed-SB turn the mean's factors; with int8 numbers have two bytes.
        if texts[name] not in (defaults[name], "fedsvd", "fedsb", "int8"):
            raise UserError(
                f"{name}: {shown(texts[name])} {why}, which secure aggregation hides; choose --{name} "
                f"{defaults[name]}, or leave secure_aggregation out"
            )
