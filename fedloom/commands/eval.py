"""`fedloom eval`: how good a model is without an adapter, or with each of several."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.example import Example
from fedloom.data.sources import load_splits
from fedloom.errors import UserError, plain_console
from fedloom.evaluation.adapter_tensors import read_fitting
from fedloom.evaluation.answering import Questions, answer
from fedloom.evaluation.asked import Asked, asked_of
from fedloom.evaluation.evaluate import Validation, predict_rows, validate_rows
from fedloom.evaluation.plan import Plan, make_plan
from fedloom.evaluation.preferred import preference_scores
from fedloom.evaluation.saved_adapters import CONFIG_FILE, SavedAdapter, same_function
from fedloom.evaluation.scores import accuracy_of, class_scores
from fedloom.evaluation.unseen import unseen
from fedloom.evaluation.verdict import Verdict, results_table, write_results
from fedloom.model.adapters.prompts import as_saved
from fedloom.model.adapters.supported import check_adapter
from fedloom.model.bank import AdapterBank
from fedloom.model.base import BaseModel, load_base
from fedloom.model.fit import check_fit
from fedloom.model.hardware import check_quantize, resolve_device
from fedloom.model.memory import auto_wave_tokens
from fedloom.model.quiet import quieten
from fedloom.model.stacked import StackedModel
from fedloom.model.structure import positions_of
from fedloom.options.evaluation import EvalConfig
from fedloom.runs.run_folder import sole_writer
from fedloom.training.provenance import device_name, versions

log = logging.getLogger(__name__)


def run_eval(config: EvalConfig) -> list[Verdict]:
    """`fedloom eval`: judge, print a table, and leave eval.json and predictions.jsonl.

    Raises:
        UserError: A mistake of the user; nearly all are found before weights are read.
    """
    quieten()
    check_quantize(config.quantize, resolve_device(config.device))
    plan = make_plan(config)
    console = plain_console()
    examples = _examples(config, plan)
    if plan.taken:
        console.print(f"taken from the run: {plan.taken}", soft_wrap=True)
    console.print(f"Judging {max(1, len(plan.adapters))} × {len(examples)} examples of {plan.task.name} …")
    # Not a lock on the run, which may go on meanwhile: only what is judged is written, and by one at a time.
    with sole_writer(plan.output):
        facts, verdicts = _evaluate(config, plan, examples)
        write_results(plan.output, facts, verdicts)
    console.print(results_table(facts, verdicts))
    console.print(f"written to {plan.output}", soft_wrap=True)
    return verdicts


def _evaluate(
    config: EvalConfig, plan: Plan, examples: list[Example]
) -> tuple[dict[str, Any], list[Verdict]]:
    """What all verdicts have in common, and the verdicts."""
    began = time.perf_counter()
    verdicts: list[Verdict] = []
    for group in _groups(plan) or [[]]:
        asked: list[Asked] = []
        base = _load(config, plan, examples, asked)
        verdicts += [
            verdict
            for verdict in _judge(config, plan, base, group, asked[0])
            if verdict.name not in {other.name for other in verdicts}  # the base is judged with each group
        ]
    order = [adapter.name for adapter, _ in plan.adapters]
    verdicts.sort(key=lambda verdict: order.index(verdict.name) if verdict.name in order else -1)
    facts = {
        "task": plan.task.name,
        "split": config.split,
        "model": plan.model_name,
        "examples": len(examples),
        "data_seed": plan.data_seed,
        "max_new_tokens": None if plan.classify else config.max_new_tokens,
        "device": device_name(base.model.device),
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "versions": versions(),
        "seconds": time.perf_counter() - began,
    }
    return facts, verdicts


def _examples(config: EvalConfig, plan: Plan) -> list[Example]:
    """The examples of the split; of a math task, those whose answer is a number.

    Of the user's own data all, where most answers are too long to be compared: they are judged by their loss.
    """
    splits = load_splits(plan.task, data_dir=plan.data_dir, seed=plan.data_seed, token=config.token)
    examples: list[Example] = getattr(splits, config.split)
    if config.split != "train":
        examples = unseen(plan, config.split, examples, config.token)
    short = [example for example in examples if example.final]
    if not plan.classify and not (plan.task.own and 2 * len(short) < len(examples)):
        if plan.task.own and len(short) < len(examples):
            log.warning(
                "%d of %d answers are too long to be compared, and left out",
                len(examples) - len(short),
                len(examples),
            )
        examples = short
    if not examples:
        raise UserError(
            f"split: no example of {config.split} can be judged: none of its answers is a number; choose "
            "another"
        )
    return examples[: config.limit]


def _load(config: EvalConfig, plan: Plan, examples: list[Example], asked: list[Asked]) -> BaseModel:
    """The model; `asked` gets the examples as it reads them, before its weights are read."""

    def before_weights(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
        for adapter, peft in plan.adapters:
            expected = as_saved(check_adapter(structure, peft, str(adapter.folder / CONFIG_FILE)))
            read_fitting(adapter.folder, expected, structure)
        virtual = max((getattr(peft, "num_virtual_tokens", 0) for _, peft in plan.adapters), default=0)
        room = positions_of(structure)
        made = asked_of(plan, examples, tokenizer, None if room is None else room - virtual)
        texts = [*made.prompts, *(side.ids for tokens in made.sequences for side in tokens.sides)]
        if made.prompts:
            _check_room(config, texts, virtual, room)
        check_fit(structure, tokenizer, texts, max_length=plan.max_length, virtual=virtual)
        asked.append(made)

    return load_base(
        plan.model_name,
        device=config.device,
        dtype=plan.dtype,
        quantize=config.quantize,
        token=config.token,
        trust_remote_code=config.trust_remote_code,
        num_labels=plan.task.num_labels if plan.classify else None,
        before_weights=before_weights,
    )


BASE = ("base", None)
"""Name and folder of a verdict on the model without an adapter."""
Group = Sequence[tuple[SavedAdapter, PeftConfig]]


def _groups(plan: Plan) -> list[Group]:
    """Adapters that can run in one pass, together."""
    groups: dict[str, list[tuple[SavedAdapter, PeftConfig]]] = {}
    for adapter, peft in plan.adapters:
        groups.setdefault(same_function(peft), []).append((adapter, peft))
    return list(groups.values())


def _judge(config: EvalConfig, plan: Plan, base: BaseModel, group: Group, asked: Asked) -> list[Verdict]:
    """The verdict on each adapter of a group, or on the base where there is none."""
    began = time.perf_counter()
    model = StackedModel(base.model, group[0][1] if group else None, seed=plan.data_seed)
    adapters = [adapter for adapter, _ in group]
    bank = _bank(model, adapters)
    _say_of_drawn(base, model, adapters)
    count = max(1, len(group))
    names: list[tuple[str, str | None]] = [(adapter.name, str(adapter.folder)) for adapter, _ in group]
    tokens = auto_wave_tokens(base.model) if config.wave_tokens == "auto" else config.wave_tokens
    if asked.sequences and asked.sequences[0].rejected is not None:
        model.beta = plan.dpo_beta
        # Adapters are judged against the base, and so it is looked at in any case.
        scored: list[Scored] = [
            (scores, []) for scores in preference_scores(model, bank, len(group), asked.sequences, tokens)
        ]
        names = [BASE, *names]
    elif asked.sequences and not plan.classify:
        scored = _losses(validate_rows(model, bank, [asked.sequences] * count, tokens), len(asked.sequences))
    elif plan.classify:
        scored = _classes(plan, asked, predict_rows(model, bank, [asked.sequences] * count, tokens))
    else:
        scored = _answers(config, model, bank, base.tokenizer, asked, count)
    seconds = (time.perf_counter() - began) / count
    return [
        Verdict(name, folder, scores | {"seconds": seconds}, predictions)
        for (name, folder), (scores, predictions) in zip(names or [BASE], scored, strict=True)
    ]


def _bank(model: StackedModel, adapters: Sequence[SavedAdapter]) -> AdapterBank:
    """The adapters' tensors, each of which must fit the model."""
    expected = as_saved(model.initial)
    rows = [read_fitting(adapter.folder, expected, model.model) for adapter in adapters]
    return AdapterBank.stack(rows) if rows else AdapterBank({})


def _say_of_drawn(base: BaseModel, model: StackedModel, adapters: Sequence[SavedAdapter]) -> None:
    """Layers that the files do not hold must come from the adapter; else the classes are noise."""
    lacking = [name for name in base.drawn if not any(f".{name}." in trained for trained in model.initial)]
    if lacking:
        log.warning(
            "the files of %s lack %s, which are drawn at random: without an adapter that holds them (%s) its "
            "classes mean nothing",
            base.name,
            ", ".join(lacking),
            "these do not: " + ", ".join(each.name for each in adapters) if adapters else "there is none",
        )


Scored = tuple[dict[str, Any], list[dict[str, Any]]]
"""An adapter's scores, and its predictions."""


def _answers(
    config: EvalConfig,
    model: StackedModel,
    bank: AdapterBank,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    count: int,
) -> list[Scored]:
    expected = [example.final for example in asked.examples]
    assert asked.form is not None, "answers are written to prompts of a format"
    questions = Questions(asked.prompts, expected, config.max_new_tokens, asked.form.end)
    every = answer(model, bank, tokenizer, [questions] * count, batch_size=config.batch_size)
    return [
        (
            accuracy_of(answers.right) | {"without_number": answers.numbers.count(None)},
            _predictions(asked.texts, answers.texts, answers.numbers, expected, answers.right),
        )
        for answers in every
    ]


def _losses(every: Sequence[Validation], examples: int) -> list[Scored]:
    """Answers that are too long to be written word by word: how likely each of their tokens is."""
    return [({"accuracy": one.accuracy, "loss": one.loss, "n": examples}, []) for one in every]


def _check_room(config: EvalConfig, prompts: list[list[int]], virtual: int, room: int | None) -> None:
    needed = max(map(len, prompts)) + virtual + config.max_new_tokens
    if room is not None and needed > room:
        raise UserError(
            f"max_new_tokens: {config.max_new_tokens} behind the longest prompt make {needed} tokens, and "
            f"the model reads {room}; lower it"
        )


def _classes(plan: Plan, asked: Asked, every: Sequence[Sequence[int]]) -> list[Scored]:
    names = plan.task.label_names
    number = [names.index(name) for name in plan.classes]  # the task's, of an output of the head
    expected = [number[sequence.label] for sequence in asked.sequences]
    found = []
    for outputs in every:
        predicted = [number[output] for output in outputs]
        right = [a == b for a, b in zip(predicted, expected, strict=True)]
        f1, matthews = class_scores(expected, predicted, len(names))
        words, wanted = ([names[number] for number in numbers] for numbers in (predicted, expected))
        scores = accuracy_of(right) | {"f1": f1, "matthews": matthews}
        found.append((scores, _predictions(asked.texts, words, words, wanted, right)))
    return found


def _predictions(
    prompts: Sequence[str],
    outputs: Sequence[str],
    extracted: Sequence[str | None],
    expected: Sequence[str],
    right: Sequence[bool],
) -> list[dict[str, Any]]:
    keys = ("prompt", "output", "extracted", "expected", "right")
    columns = (prompts, outputs, extracted, expected, right)
    return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
