"""What a client does: it says who it is, and trains on its own data as it would in `fedloom fed`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.client.work import plan_work
from fedloom.data.encode import Tokens
from fedloom.data.example import Splits
from fedloom.data.files import read_part
from fedloom.data.sources import read_examples
from fedloom.data.tasks import Task
from fedloom.errors import UserError
from fedloom.evaluation.reference import with_references
from fedloom.federation.algorithm import BASE, PERSONAL, RULE, Algorithm, part_of, with_prefix
from fedloom.model.bank import Row
from fedloom.model.fingerprint import fingerprints
from fedloom.options.fed import FedConfig
from fedloom.options.flower import FlowerConfig
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.memory import Memory
from fedloom.runtimes.flower.request import Answer, Request
from fedloom.runtimes.flower.rows import Unfit, chosen_by, digest, pack, unpack
from fedloom.runtimes.in_process import run_clients
from fedloom.training.fed_data import Encoded, fitting_data
from fedloom.training.fed_examples import ALL_CLIENTS, ClientData, FedExamples, open_data
from fedloom.training.flower.client_sizes import FACT
from fedloom.training.flower.place import check_insisted, client_number, own_data
from fedloom.training.flower.run_config import from_run_config
from fedloom.training.flower.same_base import SERVERS, check_base
from fedloom.training.flower.secrets import hidden, secret_step
from fedloom.training.private import secret_key
from fedloom.training.setup_fed import Parts, build
from fedloom.training.shared import Shared


@dataclass
class _Loaded:
    """What stays in a process: the model, and the data of the clients that have asked."""

    options: str
    config: FedConfig
    parts: Parts
    base: dict[str, str]
    data: dict[Path | None, Encoded] = field(default_factory=dict)


_loaded_model: _Loaded | None = None


def answer(request: Request) -> Answer:
    """Answer the server.

    A mistake of the user comes back as the fact ``mistake``, for the server to tell.
    """
    try:
        config = from_run_config(request.options)
        client = client_number(request.node, config.client_num)
        check_insisted(request.node, config)
        path = own_data(request.node, config.client_data, client)
        if "stage" in request.content_.facts:
            return secret_step(request, client, config)
        loaded = _load(json.dumps(request.options, sort_keys=True), config, path)
        if request.kind == "query":
            check_base(request.content_.facts.get(SERVERS, {}), client, loaded.base)
            adapter, reading = digest(loaded.parts.model.initial), loaded.parts.data.reading
            facts = {"client": client, "adapter": adapter, "reading": reading, **loaded.base}
            if path is not None and config.privacy == "example":
                facts[FACT] = len(loaded.data[path].train)
            return Answer(Content(facts))
        return _trained(request, loaded, client, path)
    except (UserError, Unfit) as error:
        return Answer(Content({"mistake": str(error)}))


def _trained(request: Request, loaded: _Loaded, client: int, path: Path | None) -> Answer:
    facts, model = request.content_.facts, loaded.parts.model
    if facts["client"] != client:
        raise Unfit(f"a message for client {facts['client'] + 1} came to client {client + 1}")
    algorithm = loaded.parts.algorithm
    like = algorithm.sent(model.initial, client)
    like = like | with_prefix(BASE, algorithm.first_base(model.initial))
    may_come = like | with_prefix(RULE, _handed_out(algorithm, model.initial, client))
    row = _brought_up_to_date(request, like, may_come)
    if row.keys() != like.keys():
        return Answer(Content({"lacks": True}))
    parts = loaded.parts
    chosen = chosen_by(facts["trained"], sorted(like))
    whole = algorithm.padded({name: row[name] for name in sorted(model.initial)})
    trained = {name: t for name, t in whole.items() if name in chosen}
    frozen = {name: t for name, t in whole.items() if name not in chosen}
    beside = unpack(request.content_.tensors, may_come, model.device, all_of_it=False)
    data = loaded.data[path]
    model.share_prefix(data.prefix)
    indices = data.clients[client] if path is None else np.arange(len(data.train))
    train = _compared(parts, data, indices)
    model.fold(part_of(row, BASE))
    rules = parts.rules
    if rules.privacy is not None and loaded.config.privacy_seed is None:
        # A round that is asked for twice, by a resumed or a curious server, has other noise each time.
        rules = replace(rules, privacy=replace(rules.privacy, key=secret_key()))
    work = plan_work(
        train,
        indices,
        parts.schedule,
        model.layout,
        seed=loaded.config.seed,
        client=client,
        round_=facts["round"],
        drawn=facts["drawn"],
        privacy=rules.privacy,
    )
    memory = Memory(request.node, loaded.config.exp_name, client) if parts.first_memory else None
    remembered = memory.recall(facts["remembers"], parts.first_memory) if memory else None
    (update,) = run_clients(
        model,
        trained,
        [work],
        rules,
        algorithm,
        frozen=frozen,
        received=algorithm.padded(part_of(beside, RULE)),
        memories={} if remembered is None else {client: remembered},
        first=parts.first_memory,
        seed=loaded.config.seed,
        round_=facts["round"],
        clip=math.inf if facts["clip"] is None else facts["clip"],
    )
    report = {name: value for name, value in vars(update).items() if name not in ("payload", "memory")}
    payload: Row = update.payload
    secrets: dict[str, Any] = {}
    if algorithm.secure is not None:
        payload, secrets = hidden(request, client, update, algorithm.remark_on_rule)
        report = {"client": client}
    if memory is not None:
        memory.keep(facts["word"], update.memory, facts["kept_from"], facts["remembers"])
        if personal := part_of(update.memory, PERSONAL):
            folder, base = memory.folder / "adapter", part_of(row, BASE)
            model.save(whole | personal, folder, rank=algorithm.rank(client), base=base)
            parts.beside.write(folder)
        report["forgot"] = facts["remembers"] is not None and remembered is None
    return Answer(
        Content({"round": facts["round"], **report, **loaded.base}, pack(payload)),
        kept=Content({"word": facts["word"], **secrets}, pack(row)),
    )


def _compared(parts: Parts, data: Encoded, indices: np.ndarray) -> list[Tokens]:
    """The training data, in which this client's preferences know what the base thinks of them."""
    parts.model.fold({})
    examples = [data.train[i] for i in indices.tolist()]
    (known,) = with_references(parts.model, [examples], parts.rules.wave_tokens)
    for i, tokens in zip(indices.tolist(), known, strict=True):
        data.train[i] = tokens  # kept for the rounds to come
    return data.train


def _brought_up_to_date(request: Request, like: Row, may_come: Row) -> Row:
    """The server's adapter: what was kept, and what has changed since; not all of it where some is lost."""
    device = next(iter(like.values())).device
    news = unpack(request.content_.tensors, may_come, device, all_of_it=False)
    news = {name: t for name, t in news.items() if name in like}
    last_seen = request.content_.facts["held"]
    if last_seen is None:
        return news
    if request.kept.facts.get("word") != last_seen:
        return {}
    return unpack(request.kept.tensors, like, device, all_of_it=False) | news


def _handed_out(algorithm: Algorithm, adapter: Row, client: int) -> Row:
    """What the server may hand out for the clients' rule, by names and shapes."""
    shared = algorithm.share(adapter.keys())
    kept = algorithm.rule.kept({name: t for name, t in adapter.items() if name in shared})
    return algorithm.sent(algorithm.rule.handed_out(kept, shared), client)


def _load(options: str, config: FlowerConfig, path: Path | None) -> _Loaded:
    """The model and this client's data, as they are here already where they can be."""
    global _loaded_model
    fed = replace(config.of_the_run, eval_generate_every=0)
    if _loaded_model is None or _loaded_model.options != options:
        _loaded_model = None  # two models may be one too many
        resolved, parts = build(fed, client_data=ALL_CLIENTS if path is None else _own(path))
        base = fingerprints(fed.model_name, parts.tokenizer)
        _loaded_model = _Loaded(options, resolved, parts, base, {path: parts.data})
    elif path not in _loaded_model.data:
        client_data = ALL_CLIENTS if path is None else _own(path)
        shared, parts = Shared(), _loaded_model.parts
        task = client_data.open(fed, shared)
        examples = client_data.load(fed, task, shared)
        _loaded_model.data[path] = fitting_data(
            fed, task, examples, client_data, parts.tokenizer, parts.model.model, parts.classes, shared
        )
    return _loaded_model


def _own(path: Path) -> ClientData:
    def load(config: FedConfig, task: Task, shared: Shared) -> FedExamples:
        limit = task.limits.get("train")
        rows = read_part(path, "train", option="client_data", names=task.split_names, limit=limit)
        return FedExamples(Splits([made.example for made in read_examples(task, rows)], [], []))

    def open_own(config: FedConfig, shared: Shared) -> Task:
        return open_data(config, [str(path)], shared, read_data=False)

    return ClientData(load, _divided_among_nobody, open_own)


def _divided_among_nobody(config: FedConfig, labels: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    return np.empty(0, dtype=np.int64), []
