"""From a config to the parts of a run: data, clients, model, rules. Nothing behind this sees the config."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.client.local import LocalRules
from fedloom.client.work import Schedule
from fedloom.data.example import Splits
from fedloom.errors import UserError
from fedloom.federation.algorithm import Algorithm, first_memory
from fedloom.federation.attacks import Attackers
from fedloom.federation.focus import Focus
from fedloom.model.adapters import choice
from fedloom.model.adapters.supported import check_adapter
from fedloom.model.bank import Row
from fedloom.model.stacked import StackedModel
from fedloom.options.check_fed import check, without_effect
from fedloom.options.fed import FedConfig
from fedloom.options.methods import chosen
from fedloom.runs.inputs import Inputs, digest_of_examples, digest_of_tokens
from fedloom.runtimes.group import ALONE, Group
from fedloom.training.adapter_folder import AdapterFolder
from fedloom.training.algorithms import (
    algorithm_with_server,
    check_personal,
    client_optimiser,
    client_ranks,
    simulated_attackers,
)
from fedloom.training.division import check_comparable
from fedloom.training.fed_data import Encoded, fitting_data
from fedloom.training.fed_examples import ALL_CLIENTS, ClientData
from fedloom.training.graph_votes import scored_layers
from fedloom.training.loop import Intervals
from fedloom.training.private import Budget, example_budget, example_privacy, user_budget
from fedloom.training.setup import beside_adapters, check_base, classes_of_head, load, lora, resolved, stack
from fedloom.training.shared import Shared

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a run is made of; see the fields' own types.

    `first_memory` is what a client remembers before its first round; see `federation.algorithm.first_memory`.

    `focus` and `server_schedule`, how much of its own data the server looks at per round, are those of
    gradient priority; `focus` is None without it. `per_round` clients are sampled for a round; `central` is
    the baseline that trains on all data as one client. `patience`: validations without a gain after which the
    run stops; 0: none. `val_limit`: how many validation examples are looked at; None: all. `beside` is
    written beside every saved adapter. `classes` are those of a classifier's head, in order. `group` are the
    processes that the clients are dealt over, `attackers` those of the clients that attack. `budget` is what
    differential privacy may cost. `server_sgd` is the option by whose rate a server of plain SGD goes, and
    the rate; None where it does otherwise.
    """

    model: StackedModel
    tokenizer: PreTrainedTokenizerBase
    splits: Splits
    data: Encoded
    schedule: Schedule
    rules: LocalRules
    algorithm: Algorithm
    first_memory: Row
    server_schedule: Schedule
    focus: Focus | None
    seed: int
    per_round: int
    central: bool
    patience: int
    val_limit: int | None
    beside: AdapterFolder
    classes: tuple[str, ...] = ()
    group: Group = ALONE
    attackers: Attackers | None = None
    budget: Budget | None = None
    server_sgd: tuple[str, float] | None = None


def build(
    config: FedConfig,
    group: Group = ALONE,
    inputs: Inputs | None = None,
    client_data: ClientData = ALL_CLIENTS,
    shared: Shared | None = None,
) -> tuple[FedConfig, Parts]:
    """Make the parts of a run, cheap and fallible things first.

    Args:
        config: What the user wants.
        group: The run's processes.
        inputs: Is told the digests of what is read.
        client_data: Whose data this process has; all clients' where they live in it.
        shared: What runs before this one have read and loaded.

    Returns:
        The config with what `auto` turned out to be (dtype, wave_tokens), and the parts.

    Raises:
        UserError: A mistake of the user, before any weights are read.
    """
    inputs, shared = inputs or Inputs(), shared or Shared()
    check(config)
    if group.size > 1 and config.train_mode == "local":
        raise UserError(
            f"train_mode: local trains one model, which cannot be dealt over {group.size} ranks; "
            "leave torchrun out, or choose fed or fedGradFocus"
        )
    for said in without_effect(config) if group.rank == 0 else ():
        log.warning(said)
    algorithm = algorithm_with_server(config)
    attackers = simulated_attackers(config, config.client_num)
    check_base(config, config.model_name)
    task = client_data.open(config, shared)
    examples = client_data.load(config, task, shared)
    splits = examples.splits
    check_comparable([*examples.train, splits.validation])
    inputs.note("training data", shared.once(digest_of_examples, examples.train))
    inputs.note("validation data", shared.once(digest_of_examples, [splits.validation]))
    classes = classes_of_head(config, config.model_name, task, own_by_head=False)
    if examples.by_client is None:
        client_data.divide(
            config, examples.values or [example.label for example in splits.train]
        )  # too many clients: say so now
    ready: list[tuple[Encoded, PeftConfig, Budget | None]] = []

    def before_weights(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
        data = fitting_data(
            config, task, examples, client_data, tokenizer, structure, classes, shared, attackers
        )
        inputs.note("tokens of the data", shared.once(digest_of_tokens, [data.train, data.validation]))
        inputs.check()
        adapter = _adapter(config, structure)
        names = check_adapter(structure, adapter).keys()
        schedule = _schedule(config)
        steps = -(-schedule.batches * schedule.epochs // schedule.accumulate)
        check_personal(algorithm, names - algorithm.share(names), steps)
        ready.append((data, adapter, _budget(config, data)))

    base = load(config, config.model_name, classes, inputs, before_weights, shared)
    shared.forget_the_rest()
    ((data, adapter, budget),) = ready
    model = stack(config, base, adapter, data.prefix)
    algorithm = replace(algorithm, ranks=client_ranks(config, adapter))
    if algorithm.refactoring is not None and algorithm.refactoring.initial is not None:
        model.initial = algorithm.refactoring.initial(model.initial, config.seed)
    if algorithm.folds and config.residual_rank is None:
        model.check_foldable()
    config = resolved(config, base, data.reader, group, shared.jobs)
    rules = _rules(config, algorithm)
    if config.train_mode == "local":  # its one client's moments last, as the server's do
        algorithm = replace(algorithm, server_optimiser=rules.optimiser)
    return config, Parts(
        model=model,
        tokenizer=base.tokenizer,
        splits=splits,
        data=data,
        schedule=_schedule(config),
        rules=rules,
        algorithm=algorithm,
        first_memory=first_memory(algorithm, model.initial, rules.optimiser),
        server_schedule=Schedule(
            config.server_batches,
            config.batch_size,
            accumulate=config.server_batches,
            mean_over=config.grad_accum_mean,
        ),
        focus=_focus(config, model) if config.train_mode == "fedGradFocus" else None,
        seed=config.seed,
        per_round=config.client_num_per_step,
        central=config.train_mode == "local",
        patience=config.patience,
        val_limit=config.val_limit,
        beside=beside_adapters(config, task, base, data.reader),
        classes=classes,
        group=group,
        attackers=attackers,
        budget=budget,
        server_sgd=_server_sgd(config),
    )


def intervals(config: FedConfig) -> Intervals:
    """How many rounds, and what happens how often.

    There is a checkpoint with every validation: the adapters that validation speaks of are all there.
    """
    return Intervals(
        rounds=config.max_steps,
        validate_every=config.val_steps,
        answer_every=config.eval_generate_every,
        save_every=config.val_steps,
        report_to=config.report_to,
    )


def _adapter(config: FedConfig, model: PreTrainedModel) -> PeftConfig:
    if config.peft == "lora":
        return lora(config, max(config.ranks), model)
    kind = choice.p_tuning if config.peft == "p-tuning" else choice.prompt_tuning
    return kind(model, virtual_tokens=config.virtual_tokens)


def _schedule(config: FedConfig) -> Schedule:
    """A client's round. The baseline on all data does in a round as much as all sampled clients together."""
    share = config.client_num_per_step if config.train_mode == "local" else 1
    return Schedule(
        batches=config.client_batch_per_step * share,
        batch_size=config.batch_size,
        epochs=config.client_epoch,
        accumulate=config.grad_accum_steps,
        mean_over=config.grad_accum_mean,
    )


def _server_sgd(config: FedConfig) -> tuple[str, float] | None:
    option = {"none": "client_lr", "sgd": "lr"}.get(chosen(config)["server_optimizer"])
    if option is None or config.train_mode == "local" or config.client_optimizer != "sgd":
        return None
    return option, getattr(config, option)


def _rules(config: FedConfig, algorithm: Algorithm) -> LocalRules:
    local = config.train_mode == "local"
    assert isinstance(config.wave_tokens, int)
    return LocalRules(
        optimiser=client_optimiser("adamw", config.lr, config.loraplus_lr_ratio)
        if local
        else client_optimiser(config.client_optimizer, config.client_lr, config.loraplus_lr_ratio),
        rule=algorithm.rule,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        wave_tokens=config.wave_tokens,
        dropout_seed=config.seed,
        privacy=example_privacy(config),
    )


def _budget(config: FedConfig, data: Encoded) -> Budget | None:
    if config.privacy == "none":
        return None
    if config.privacy == "user":
        return user_budget(config)
    sizes = [len(indices) for indices in data.clients]
    return example_budget(config, sizes, [_schedule(config)] * len(sizes), peers=False)


def _focus(config: FedConfig, model: StackedModel) -> Focus:
    return Focus(
        layers=scored_layers(model),
        highest=config.max_layer_num,
        lowest=config.min_layer_num,
        policy=config.layer_policy,
        grad_eval=config.grad_eval,
        server_grad_scale=config.server_grad_scale,
        seed=config.seed,
        rounds=config.layer_rounds,
    )
