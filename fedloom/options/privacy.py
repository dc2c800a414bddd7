"""The options of differential privacy; see docs/privacy.md."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from fedloom.errors import UserError, shown
from fedloom.options.declare import option
from fedloom.options.idle import refuse_idle
from fedloom.options.methods import PARTS, chosen

ADAPTIVE = "adaptive"
FIRST_CLIP, QUANTILE = 0.1, 0.5
"""Of adaptive clipping, as Andrew et al. (2021) recommend: the first bound, and the share below it."""


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Privacy."""

    privacy: Literal["none", "user", "example"] = option(
        "none",
        "differential privacy: user: of a client with all its data, by noise at the server (DP-FedAvg); "
        "example: of each example, by noise at its client or peer (DP-SGD); see docs/privacy.md",
    )
    clip: float | str | None = option(
        ADAPTIVE,
        "largest Euclidean norm of a client's change (example: of an example's gradient); adaptive, or "
        "adaptive:START:SHARE, follows the norms of changes so that this share of them is within it; none, "
        "with noise_multiplier 0, clips nothing",
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
        "largest epsilon that the run may spend; for privacy user without noise_multiplier the noise is "
        "found that spends it over max_steps",
        above=0,
        maximum=1e6,
    )
    delta: float | Literal["auto"] = option(
        "auto",
        "delta of (epsilon, delta), below 1 / clients (example: 1 / examples of the largest client); auto: "
        "that to the power 1.1, at most 1e-5",
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

    @property
    def clip_bound(self) -> tuple[float, float | None]:
        """The first bound that `clip` gives, and of an adaptive one the share within it, else None.

        Raises:
            UserError: It is no bound.
        """
        if self.clip is None:
            return math.inf, None
        if isinstance(self.clip, int | float):
            return float(self.clip), None
        name, *numbers = self.clip.split(":")
        try:
            first, quantile = (float(n) for n in (numbers + [FIRST_CLIP, QUANTILE][len(numbers) :]))
        except ValueError:
            first = quantile = math.nan
        if name != ADAPTIVE or not (0 < first <= 1e9 and 0 < quantile < 1):
            raise UserError(
                f"clip: {shown(self.clip)} is not a number above 0, none, or adaptive:START:SHARE with START "
                "above 0 and SHARE between 0 and 1; write for example 0.5, or "
                f"{ADAPTIVE}:{FIRST_CLIP}:{QUANTILE}"
            )
        return first, quantile


def delta_of(given: float | Literal["auto"], count: int, of: str) -> float:
    """The option, or for auto its value for so many clients or examples.

    Args:
        given: The option.
        count: How many there are.
        of: What is counted, in words.

    Raises:
        UserError: It is not below 1 / count.
    """
    if given == "auto":
        return min(1e-5, count**-1.1)
    if given >= 1 / count:
        raise UserError(
            f"delta: {given:g} is not below 1 / {count:,} {of}, so that it would allow all data of one to be "
            f"told; give --delta {delta_of('auto', count, of):.2g}, or less"
        )
    return given


def check_privacy(config: Any, *, server: bool) -> None:
    """Judge the options of differential privacy, together and beside the others.

    Args:
        config: Options of a run.
        server: Whether it is one with a server.

    Raises:
        UserError: They contradict each other, or something of the run cannot be protected.
    """
    if config.privacy == "none":
        kind = "user" if server else "example"
        names = {field.name for field in fields(Privacy)} - {"privacy"}
        refuse_idle(config, names, "without differential privacy", f"--privacy {kind}")
        return
    clip, share = config.clip_bound
    if config.privacy == "user":
        if not server:
            raise UserError(
                "privacy: user needs a server that adds noise to the sum, and peers have none; choose "
                "--privacy example, whose noise each peer adds before it sends"
            )
        delta_of(config.delta, config.client_num, "clients")
        _check_beside(config)
    else:
        _check_example(config, share, server=server)
    if config.noise_multiplier == "auto" and config.target_epsilon is None:
        raise UserError(
            f"privacy: {config.privacy} needs noise; give --target_epsilon, such as 8, or --noise_multiplier"
        )
    if math.isinf(clip) and config.noise_multiplier != 0:
        raise UserError(
            "clip: none bounds nothing, and no noise hides what has no bound; give a number, or "
            "--noise_multiplier 0"
        )
    if config.noise_multiplier == 0 and config.target_epsilon is not None:
        raise UserError(
            f"noise_multiplier: 0 is no noise, whose epsilon is infinite, and target_epsilon is "
            f"{config.target_epsilon:g}; leave one of them out"
        )


def _check_example(config: Any, share: float | None, *, server: bool) -> None:
    if share is not None:
        raise UserError(
            f"clip: {config.clip} follows the norms of clients' changes, and privacy example cuts the "
            "gradient of each example; give a number, such as 1"
        )
    if config.noise_multiplier == "auto":
        raise UserError(
            "privacy: example needs --noise_multiplier, such as 1; the clients' epsilons follow from their "
            "sizes, and target_epsilon is where the run ends"
        )
    if server and config.train_mode == "local":
        raise UserError(
            "privacy: example protects what clients send, and train_mode local trains on all data in one "
            "place; choose --train_mode fed"
        )
    factors = chosen(config)["train_factors"].partition(":")[0]
    if factors in ("square", "heads"):
        raise UserError(
            f"train_factors: {factors} trains matrices between LoRA's factors, of which each example's "
            "gradient is not taken; choose another train_factors, or --privacy none"
        )
    if server and config.accumulate == "sum":
        raise UserError(
            "accumulate: sum multiplies a step by how many examples it has, which privacy example keeps "
            "secret; choose --accumulate mean"
        )
    if chosen(config)["client_rule"].partition(":")[0] == "ditto":
        raise UserError(
            "client_rule: ditto trains a second model on the same examples, whose cost is not counted; "
            "choose another client_rule, or --privacy none"
        )
    if server and len(set(config.ranks)) > 1:
        raise UserError(
            f"lora_r: {config.lora_r} gives clients ranks of their own, and the norm of an example's "
            "gradient would be that of all; choose one rank"
        )
    if not server and getattr(config, "layer_votes", "none") != "none":
        raise UserError(
            f"layer_votes: {config.layer_votes} tells neighbours of gradients, or leaves layers out of a "
            "round, and neither is in the account of privacy; choose --layer_votes none"
        )


def _check_beside(config: Any) -> None:
    """What has no bound on what one client changes, or sends something beside its change."""
    if config.train_mode == "local":
        raise UserError(
            f"privacy: {config.privacy} protects what clients send, and train_mode local trains on all data "
            "in one place; choose --train_mode fed"
        )
    if len(set(config.ranks)) > 1:
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
    texts = chosen(config)
    if texts["client_rule"].partition(":")[0] == "ditto":
        raise UserError(
            "client_rule: ditto gives clients models of their own, whose validation would be told without "
            "protection; choose --client_rule none or proximal, or --privacy none"
        )
    for name, text in texts.items():
        # FedSVD and Fed-SB turn factors that were noised already.
        if name in reasons and text not in (defaults[name], "fedsvd", "fedsb"):
            raise UserError(
                f"{name}: {shown(text)} {reasons[name]}; choose --{name} {defaults[name]}, or --privacy none"
            )
