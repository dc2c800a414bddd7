"""The options of differential privacy; see docs/privacy.md."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from fedloom.errors import UserError, shown
from fedloom.options.declare import option
from fedloom.options.methods import PARTS, chosen

ADAPTIVE = "adaptive"
FIRST_CLIP, QUANTILE = 0.1, 0.5
"""Of adaptive clipping, as Andrew et al. (2021) recommend: the first bound, and the share below it."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Privacy."""

    privacy: Literal["none", "user"] = option(
        "none",
        "differential privacy: user: of everything that a client sends together (DP-FedAvg); see "
        "docs/privacy.md",
    )
    clip: float | str | None = option(
        ADAPTIVE,
        "largest Euclidean norm of a client's change; adaptive, or adaptive:START:SHARE, follows the norms "
        "so that this share of the changes is within it; none, with noise_multiplier 0, clips nothing",
        above=0,
        maximum=1e9,
    )
    noise_multiplier: float | Literal["auto"] = option(
        "auto",
        "standard deviation of the noise, as a multiple of the clip; 0: no noise and no privacy; auto: what "
        "target_epsilon takes",
        minimum=0,
        maximum=1e6,
    )
    target_epsilon: float | None = option(
        None,
        "largest epsilon that the run may spend; without noise_multiplier the noise is found that spends it "
        "over max_steps",
        above=0,
        maximum=1e6,
    )
    delta: float | Literal["auto"] = option(
        "auto",
        "delta of (epsilon, delta), below 1 / clients; auto: 1 / clients^1.1, at most 1e-5",
        above=0,
        below=1,
    )
    accountant: Literal["pld", "rdp"] = option(
        "pld",
        "how epsilon is bounded: by privacy loss distributions, which is tighter, or Rényi differential "
        "privacy",
    )
    privacy_seed: int | None = option(
        None,
        "seed of the noise and of who is sampled, for experiments: who knows it can take the noise away; "
        "none: a secret one, new at every start",
        minimum=0,
        maximum=2**63 - 1,
    )


def clip_of(given: float | str | None) -> tuple[float, float | None]:
    """The first bound that the option gives, and of an adaptive one the share within it, else None.

    Raises:
        UserError: It is no bound.
    """
    if given is None:
        return math.inf, None
    if isinstance(given, int | float):
        return float(given), None
    name, *numbers = given.split(":")
    try:
        first, quantile = (float(n) for n in (numbers + [FIRST_CLIP, QUANTILE][len(numbers) :]))
    except ValueError:
        first = quantile = math.nan
    if name != ADAPTIVE or not (0 < first <= 1e9 and 0 < quantile < 1):
        raise UserError(
            f"clip: {shown(given)} is not a number above 0, none, or adaptive:START:SHARE with START above 0 "
            f"and SHARE between 0 and 1; write for example 0.5, or {ADAPTIVE}:{FIRST_CLIP}:{QUANTILE}"
        )
    return first, quantile


def delta_of(config: Any) -> float:
    """The option, or for auto its value at this number of clients."""
    return min(1e-5, config.client_num**-1.1) if config.delta == "auto" else config.delta


def check_privacy(config: Any) -> None:
    """Judge the options of differential privacy, together and beside the others.

    Raises:
        UserError: They contradict each other, or something of the run cannot be protected.
    """
    if config.privacy == "none":
        for field in fields(Privacy):
            if field.name != "privacy" and (given := getattr(config, field.name)) != field.default:
                raise UserError(
                    f"{field.name}: {shown(given)} has no meaning without differential privacy; choose "
                    f"--privacy user, or leave {field.name} out"
                )
        return
    clip, _ = clip_of(config.clip)
    if config.noise_multiplier == "auto" and config.target_epsilon is None:
        raise UserError(
            f"privacy: {config.privacy} needs noise; give --target_epsilon, such as 8, or --noise_multiplier"
        )
    if math.isinf(clip) and config.noise_multiplier != 0:
        raise UserError(
            "clip: none leaves a change as large as it is, and no noise hides it; give a bound, or "
            "--noise_multiplier 0"
        )
    if config.noise_multiplier == 0 and config.target_epsilon is not None:
        raise UserError(
            f"noise_multiplier: 0 is no noise, whose epsilon is infinite, and target_epsilon is "
            f"{config.target_epsilon:g}; leave one of them out"
        )
    if config.delta != "auto" and config.delta >= 1 / config.client_num:
        raise UserError(
            f"delta: {config.delta:g} is not below 1 / client_num = {1 / config.client_num:g}, so that it "
            "would allow all data of some client to be told; lower delta, or leave it out"
        )
    _check_beside(config)


def _check_beside(config: Any) -> None:
    """What has no bound on what one client changes, or sends something beside its change."""
    if config.train_mode == "local":
        raise UserError(
            f"privacy: {config.privacy} protects what clients send, and train_mode local trains on all data "
            "in one place; choose --train_mode fed"
        )
    if len(config.ranks) > 1:
        raise UserError(
            f"lora_r: {config.lora_r} gives clients ranks of their own, and what one does not have would "
            f"count as its change, which privacy {config.privacy} clips; choose one rank"
        )
    reasons = {
        "aggregator": "is no sum, and noise hides one client in a sum",
        "lora_aggregation": "combines products of factors, and noise hides one client in a sum of factors",
        "share": "leaves clients parameters of their own, whose validation would be told without protection",
    }
    defaults = {part.option: part.default for part in PARTS}
    for name, text in chosen(config).items():
        # FedSVD and Fed-SB turn factors that were noised already.
        if name in reasons and text not in (defaults[name], "fedsvd", "fedsb"):
            raise UserError(
                f"{name}: {shown(text)} {reasons[name]}; choose --{name} {defaults[name]}, or --privacy none"
            )
