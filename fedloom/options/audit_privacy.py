"""The options of `fedloom audit-privacy`; see `fedloom.options.fed`."""

from dataclasses import dataclass

from fedloom.errors import UserError
from fedloom.options.check_fed import check as check_fed
from fedloom.options.declare import option
from fedloom.options.fed import FedConfig
from fedloom.options.method import sets_method
from fedloom.options.methods import chosen


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Audit."""

    canaries: int = option(
        200,
        "canaries, each put in or left out by a fair coin; the more there are, the larger an epsilon they "
        "can show",
        minimum=8,
        maximum=100_000,
    )
    inverted: int = option(
        4,
        "examples whose tokens are rebuilt from one client's change, with protection and without; 0: none",
        minimum=0,
        maximum=1000,
    )
    output: str = option("audit.json", "file to write", path=True)


@sets_method(server=True)
@dataclass(frozen=True, kw_only=True)
class AuditPrivacyConfig(FedConfig, Audit):
    """All options of `fedloom audit-privacy`, by their flat names."""


def check(config: AuditPrivacyConfig) -> None:
    """Judge the options, each for itself and together.

    Raises:
        UserError: A value breaks its rule, or there is nothing to audit.
    """
    check_fed(config)
    if config.privacy == "none":
        raise UserError(
            "privacy: none makes no promise to measure; choose --privacy user or example, "
            "with --noise_multiplier 0 for what an attacker sees without noise"
        )
    if config.privacy == "example" and (rule := chosen(config)["client_rule"]).startswith("fedrep"):
        raise UserError(
            f"client_rule: {rule} moves a part of the parameters in each step, and the attacker looks "
            "at all of them; choose another client_rule, or --privacy user"
        )
    if config.resume:
        raise UserError("resume: an audit begins afresh, and leaves no run; leave resume out")
    if config.attack != "none":
        raise UserError(
            f"attack: {config.attack} has clients that attack the others, and canaries are all that an audit "
            "adds; leave attack out"
        )
    if config.secure_aggregation is not None:
        raise UserError(
            f"secure_aggregation: {config.secure_aggregation:g} hides changes from the server, and the audit "
            "looks at their sum, which is the same; leave secure_aggregation out"
        )
