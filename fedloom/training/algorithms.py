"""From options to an algorithm: with a server, and on a graph."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from peft import PeftConfig

from fedloom.client.optimisers import Optimiser, adam, loraplus, sgd
from fedloom.errors import UserError
from fedloom.federation.aggregators import NeedsServer
from fedloom.federation.aggregators.mean import weighted_mean
from fedloom.federation.algorithm import Algorithm, compose
from fedloom.federation.attacks import Attack, Attackers, drawn
from fedloom.federation.codecs.none import none as as_it_is
from fedloom.federation.neighbours import combined
from fedloom.federation.plugged import made
from fedloom.federation.privacy.user import UserPrivacy
from fedloom.federation.ranks import Ranks
from fedloom.federation.secure_sum import SecureSum
from fedloom.model.adapters.ranks import rank_factor
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.methods import ATTACK, chosen
from fedloom.training.factors import check_factors, check_rank, each_with_a_residual
from fedloom.training.graph_data import Setting
from fedloom.training.graph_votes import check_votes

log = logging.getLogger(__name__)

ADAMW_WEIGHT_DECAY = 0.01
"""Of AdamW; torch's default, which FedGPL uses."""


def algorithm_with_server(config: FedConfig) -> Algorithm:
    """The parts that the options choose; the baseline on all data has none."""
    if config.train_mode == "local":
        return Algorithm(config.lr)
    texts = chosen(config)
    algorithm = compose(texts, vars(config), config.client_lr)
    if config.secure_aggregation is not None:
        # Two bytes a number are the sum's own; a codec would send what cannot be added up.
        algorithm = replace(algorithm, secure=_secure_sum(config, algorithm), codec=as_it_is())
    check_factors(config, texts, algorithm)
    _check_one_gradient(config, algorithm)
    if config.privacy == "user":
        algorithm = replace(algorithm, privacy=_user_privacy(config, algorithm))
    return algorithm


def _user_privacy(config: FedConfig, algorithm: Algorithm) -> UserPrivacy:
    """How the options hide a client; without a number for the noise, as a client has it, there is none yet.

    Raises:
        UserError: The clients' rule tells more than their change.
    """
    _check_change_alone(config, algorithm, "noise would not hide", "--privacy none")
    clip, quantile = config.clip_bound
    noise = math.nan if config.noise_multiplier == "auto" else config.noise_multiplier
    return UserPrivacy(clip, quantile, noise, config.client_num, config.client_num_per_step)


def _check_change_alone(config: FedConfig, algorithm: Algorithm, why: str, instead: str) -> None:
    """Make sure that of a client the server knows its change and nothing else.

    Raises:
        UserError: The clients' rule lets it know more.
    """
    if algorithm.rule.at_server:
        raise UserError(
            f"client_rule: {chosen(config)['client_rule']} lets the server keep what clients send beside "
            f"their change, or how many came, which {why}; choose none or proximal, or {instead}"
        )


def chosen_attack(config: FedConfig | DflConfig) -> Attack | None:
    """What attackers do in a simulation; None where nobody attacks.

    Raises:
        UserError: The attack cannot be made of its text.
    """
    return None if config.attack == ATTACK.default else made(ATTACK, config.attack, vars(config))


def simulated_attackers(config: FedConfig | DflConfig, clients: int) -> Attackers | None:
    """Who attacks, and how: a function of the seed, or as listed; None where nobody does.

    Args:
        config: Options of a run, checked.
        clients: How many clients or peers there are.

    Raises:
        UserError: As `chosen_attack`.
    """
    attack = chosen_attack(config)
    if attack is None:
        return None
    if isinstance(config.attackers, str):
        return Attackers(frozenset(n - 1 for n in config.attacker_numbers), attack, config.seed)
    return drawn(attack, clients, config.attackers or 1, config.seed)


def client_optimiser(name: str, lr: float, b_ratio: float = 1.0) -> Optimiser:
    """What clients, or peers, descend by.

    Args:
        name: sgd, adam or adamw.
        lr: Their learning rate.
        b_ratio: By how much that of LoRA's B is larger; see `optimisers.loraplus`.
    """
    decay = ADAMW_WEIGHT_DECAY if name == "adamw" else 0.0
    make = sgd if name == "sgd" else partial(adam, weight_decay=decay)
    return make(lr) if b_ratio == 1 else loraplus(make, lr, b_ratio)


def check_personal(algorithm: Algorithm, personal: Collection[str], steps: int) -> None:
    """Make sure that in a round both what is personal and what is shared trains.

    Args:
        algorithm: Which.
        personal: Names of the personal parameters.
        steps: Optimiser steps of a round, the fewest that a client takes.

    Raises:
        UserError: A rule that trains one after the other leaves nothing for one of them.
    """
    first = algorithm.rule.head_steps
    if first and not personal:
        raise UserError(
            f"client_rule: fedrep:{first} trains personal parameters before shared ones, and there are none; "
            "choose --share body:1, or --client_rule none"
        )
    if first >= steps > 0:
        raise UserError(
            f"client_rule: fedrep:{first} is all that a client does in a round of {steps} "
            f"step{'s' * (steps > 1)}, so that what is shared would never train; choose fewer, or let "
            "clients take more steps"
        )


def _secure_sum(config: FedConfig, algorithm: Algorithm) -> SecureSum:
    """How changes become whole numbers.

    Raises:
        UserError: The clients' rule sends something beside their change.
    """
    _check_change_alone(config, algorithm, "secure aggregation would not hide", "--secure_aggregation none")
    assert config.secure_aggregation is not None
    examples = config.client_batch_per_step * config.batch_size * config.client_epoch
    # Poisson sampling may take everybody.
    alike = config.privacy == "user"
    clients = config.client_num if alike else config.client_num_per_step
    bits: Literal[16, 32] = 32 if chosen(config)["compress"] == "none" else 16
    # No number of a change within the clip is beyond it.
    largest = min(config.secure_aggregation, config.clip_bound[0]) if alike else config.secure_aggregation
    return SecureSum(largest, clients, None if alike else examples, bits)


def client_ranks(config: FedConfig, adapter: PeftConfig) -> Ranks | None:
    """The clients' LoRA ranks, which they get in turn; None where all have the same."""
    given = config.ranks
    if len(set(given)) == 1:
        return None
    clients = [given[client % len(given)] for client in range(config.client_num)]
    products = chosen(config)["lora_aggregation"] not in ("factors", "hetlora")
    return Ranks(clients, max(given), [rank_factor(adapter, rank) for rank in clients], products)


def algorithm_on_graph(config: Setting) -> Algorithm:
    """The parts that the options choose.

    Raises:
        UserError: One has no meaning without a server.
    """
    algorithm = compose(chosen(config), vars(config), client_lr=config.lr)
    if (turned := algorithm.refactoring) is not None and turned.rounds != 0:
        raise UserError(
            f"lora_aggregation: {chosen(config)['lora_aggregation']} needs one A for all, which a server "
            "turns; peers would each turn to an A of their own, and the mean of their B would mean nothing; "
            "choose --training_type DFL-LoRA with factors, or --lora_aggregation flexlora"
        )
    if turned is not None:
        check_rank(turned, config.lora_r)
    if algorithm.folds:
        algorithm = each_with_a_residual(chosen(config), algorithm, one_a=config.frozen_a)
    if algorithm.rule.own_model is not None:
        raise UserError(
            f"client_rule: {chosen(config)['client_rule']} holds a personal model near the server's, and "
            "there is no server; a peer's model is its own already, so choose proximal, or keep a part of it "
            "from neighbours by --share"
        )
    if algorithm.rule.at_server:
        raise UserError(
            f"client_rule: {chosen(config)['client_rule']} keeps something at a server, and there is none; "
            "choose none, proximal, quasi_global or gradient_tracking"
        )
    if algorithm.rule.mixed is not None and algorithm.aggregator is not weighted_mean:
        raise UserError(
            f"client_rule: {chosen(config)['client_rule']} is about the mean of what neighbours send, which "
            "another aggregator or lora_aggregation is not; leave them out, or choose --client_rule none"
        )
    check_votes(config, algorithm)
    check_among_peers(algorithm)
    _check_one_gradient(config, algorithm)
    return algorithm


def check_among_peers(algorithm: Algorithm) -> None:
    """Let the aggregator combine next to nothing, so that one that asks for what only a server has is told.

    Raises:
        NeedsServer: It does.
    """
    row = {"0.lora_A.weight": torch.ones(1, 2), "0.lora_B.weight": torch.ones(2, 1)}
    try:
        known = algorithm.first_aggregator_state(row, 2)
        combined(algorithm.aggregator, row, 0, {1: row}, {0: 0.5, 1: 0.5}, known, seed=0, round_=0)
    except NeedsServer:
        raise
    except Exception:  # a row of the model's may do what this one does not
        log.debug("the aggregator cannot combine a row that is none of the model's", exc_info=True)


def _check_one_gradient(config: FedConfig | Setting, algorithm: Algorithm) -> None:
    """Refuse a rule that looks at examples more than once where they are hidden.

    Raises:
        UserError: What a step tells of its examples is counted once.
    """
    if algorithm.rule.gradient is not None and config.privacy == "example":
        raise UserError(
            f"client_rule: {chosen(config)['client_rule']} takes gradients of its own, and privacy example "
            "counts one noised gradient a step; choose --client_rule none, or --privacy none"
        )


def personal_names(config: Setting, algorithm: Algorithm, names: Collection[str]) -> frozenset[str]:
    """The parameters that stay with their peer.

    Raises:
        UserError: All that trains would.
    """
    trained = [name for name in names if not (config.frozen_a and ".lora_A." in name)]
    heads = {name for name in trained if ".lora_" not in name and not config.mix_head}
    personal = frozenset(trained) - algorithm.share(trained) | heads
    if not personal < frozenset(trained):
        raise UserError(
            f"share: {chosen(config)['share']} keeps all that is trained with its peer, so that nothing "
            "would be sent; choose --share all"
        )
    return personal
