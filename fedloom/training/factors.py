"""What goes with a LoRA aggregation that changes the base, or with which rounds end with other factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fedloom.errors import UserError
from fedloom.federation.aggregators import Folding, Refactoring
from fedloom.federation.algorithm import Algorithm
from fedloom.model.bank import AdapterBank
from fedloom.options.fed import FedConfig


def check_factors(config: FedConfig, texts: Mapping[str, str], algorithm: Algorithm) -> None:
    """Judge what is combined with the LoRA aggregation.

    Args:
        config: Options of a run with a server.
        texts: What each part's option says.
        algorithm: The parts.

    Raises:
        UserError: It has no meaning beside it.
    """
    if algorithm.ends_with_new_factors:
        _check_nothing_kept(texts, algorithm)
    if algorithm.refactoring is not None:
        _check_one_for_all(config, texts, algorithm)
    if algorithm.folds:
        _check_folding(config, texts, algorithm)


def _check_nothing_kept(texts: Mapping[str, str], algorithm: Algorithm) -> None:
    """Refuse what knows factors one number at a time, where each round ends with others.

    The clients' optimiser does too, and begins anew: see `federation.algorithm.first_memory`.

    Raises:
        UserError: Clients or the server remember something of them.
    """
    products, rule = texts["lora_aggregation"], algorithm.rule
    if algorithm.codec.remembers or rule.remembers or rule.own_model is not None:
        raise UserError(
            f"lora_aggregation: {products} ends every round with new factors, and what clients remember "
            "(compress, client_rule) is of the old ones; choose --compress none and --client_rule none, or "
            "another lora_aggregation"
        )
    moments = algorithm.server_optimiser.init(AdapterBank.repeat({"": torch.zeros(1)}, 1))
    if algorithm.refactoring is not None and moments:
        raise UserError(
            f"lora_aggregation: {products} ends every round with new factors, and the moments of "
            f"server_optimizer {texts['server_optimizer']} are of the old ones; choose --server_optimizer "
            "none, or another lora_aggregation"
        )


def _check_one_for_all(config: FedConfig, texts: Mapping[str, str], algorithm: Algorithm) -> None:
    """Refuse what does not go with factors that are the same for all clients, and that the server turns.

    Raises:
        UserError: Clients have factors of other ranks or of their own, or the server scores them.
    """
    products = texts["lora_aggregation"]
    if len(set(config.ranks)) > 1:
        raise UserError(
            f"lora_aggregation: {products} has one A for all, and lora_r {config.lora_r} gives clients "
            "factors of unequal rank; choose one rank, or --lora_aggregation flexlora"
        )
    turned = algorithm.refactoring
    if turned is not None and turned.after(0) and algorithm.rule.own_model is not None:
        raise UserError(
            f"lora_aggregation: {products} turns the server's factors, and a personal model of client_rule "
            f"{texts['client_rule']} would be held near others than its own; choose another client_rule, or "
            "--lora_aggregation factors"
        )
    if turned is None or turned.initial is None:
        return
    check_rank(turned, config.ranks[0])
    if config.train_mode != "fed":
        raise UserError(
            f"lora_aggregation: {products} trains a matrix between LoRA's factors, by whose gradients "
            f"train_mode {config.train_mode} scores layers; choose --train_mode fed, or another "
            "lora_aggregation"
        )


def check_rank(turned: Refactoring, rank: int) -> None:
    """Make sure that matrices fit between factors of this rank.

    Raises:
        UserError: They do not.
    """
    if turned.initial is not None:
        one = torch.zeros(1, 1)
        turned.initial({"m.lora_A.weight": one.expand(rank, 1), "m.lora_B.weight": one.expand(1, rank)}, 0)


def _check_folding(config: FedConfig, texts: Mapping[str, str], algorithm: Algorithm) -> None:
    """Refuse what knows the base that it changes, or changes the adapter by something else.

    Raises:
        UserError: The server or clients do.
    """
    products = texts["lora_aggregation"]
    if texts["server_optimizer"] != "none":
        raise UserError(
            f"lora_aggregation: {products} changes the base by what clients trained, and server_optimizer "
            f"{texts['server_optimizer']} would change the adapter by something else; choose "
            "--server_optimizer none, or --lora_aggregation flexlora"
        )
    if algorithm.rule.own_model is not None:
        raise UserError(
            f"lora_aggregation: {products} changes the base, and with it the model that client_rule "
            f"{texts['client_rule']} lets clients keep for themselves; choose another client_rule, or "
            "--lora_aggregation flexlora"
        )
    if algorithm.rule.amend is not None:
        raise UserError(
            f"lora_aggregation: {products} changes the base by what clients trained, and client_rule "
            f"{texts['client_rule']} would change the adapter by something else; choose another client_rule, "
            "or --lora_aggregation flexlora"
        )
    if config.train_mode == "fedGradFocus":
        raise UserError(
            f"lora_aggregation: {products} changes the base by the products of all layers, and train_mode "
            "fedGradFocus trains some; choose --train_mode fed, or --lora_aggregation flexlora"
        )
    if len(set(config.ranks)) > 1 and products == "fedex":
        raise UserError(
            f"lora_aggregation: fedex averages factors, and lora_r {config.lora_r} gives clients factors of "
            "unequal rank; choose one rank, or --lora_aggregation flora or flexlora"
        )


def each_with_a_residual(texts: Mapping[str, str], algorithm: Algorithm, *, one_a: bool) -> Algorithm:
    """What a change of the base is without a server: each peer's own, in its adapter.

    Args:
        texts: What each part's option says.
        algorithm: The parts, as with a server.
        one_a: Whether A is one for all for good, so that there is no residual, and no rank to give.

    Raises:
        UserError: It has no meaning there, its rank is not given, or what is sent is compressed.
    """
    products, folding = texts["lora_aggregation"], algorithm.aggregator
    assert isinstance(folding, Folding)
    if folding.among_peers is None:
        raise UserError(
            f"lora_aggregation: {products} changes the base that all clients share, and peers without a "
            "server share none; choose factors, flexlora, lora_fair, or fedex with a residual_rank"
        )
    if not folding.rank and not one_a:
        given = "none" if folding.rank is None else folding.rank
        raise UserError(
            f"residual_rank: {given}, but without a server lora_aggregation {products} lets each peer have "
            "and send a residual of its own, whose rank would grow from round to round; give a cap, as in "
            "--residual_rank 16, or choose --lora_aggregation flexlora with a larger lora_r, or "
            "--training_type DFL-LoRA, which is exact without one"
        )
    if algorithm.codec.lossy:
        raise UserError(
            f"lora_aggregation: {products} ends every round with other factors of a peer's residual, and "
            f"compress {texts['compress']} has estimates of the old ones; choose --compress none, or another "
            "lora_aggregation"
        )
    return replace(algorithm, aggregator=replace(folding, combine=folding.among_peers))
