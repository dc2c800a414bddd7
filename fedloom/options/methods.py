"""The table: names from the literature, and the options that each of them sets. It loads no torch.

A method is a choice of independent parts, each of which has an option of its own (`PARTS`). `--method NAME`
sets them, options that are given win. A new method is one file in the folder of its part, and one row here;
from outside of the package it is a function and a row in a module that `--plugin` names (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """A part of an algorithm.

    Attributes:
        option: The option that chooses it.
        folder: The package whose files are the choices.
        default: What it is where neither an option nor a method says.
    """

    option: str
    folder: str
    default: str


AUTO = "auto"
"""What an option of a part says where it leaves the choice to others."""

PARTS = (
    Part("server_optimizer", "fedloom.federation.server_optimizers", "none"),
    Part("client_rule", "fedloom.client.rules", "none"),
    Part("aggregator", "fedloom.federation.aggregators", "mean"),
    Part("lora_aggregation", "fedloom.federation.lora_aggregations", "factors"),
    Part("share", "fedloom.federation.sharing", "all"),
    Part("train_factors", "fedloom.federation.train_factors", "both"),
    Part("compress", "fedloom.federation.codecs", "none"),
)

ATTACK = Part("attack", "fedloom.federation.attacks", "none")
"""What attackers do in a simulation: no part of an algorithm, but found, made and plugged in as parts are."""


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        name: As the literature has it.
        source: Where it comes from.
        sets: Options, the same with a server and on a graph.
        server: Those that it sets with a server besides; None where it has no meaning there.
        graph: The same on a graph, without a server.
    """

    name: str
    source: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] | None = field(default_factory=dict)
    graph: Mapping[str, Any] | None = None

    def settings(self, *, server: bool) -> dict[str, Any] | None:
        """All that it sets with a server, or on a graph; None where it has no meaning."""
        more = self.server if server else self.graph
        return None if more is None else {**self.sets, **more}


_FED = {"train_mode": "fed"}
_GOSSIP = {"training_type": "LoRA"}

METHODS: list[Method] = [
    Method("FedAvg", "McMahan et al., 2017, arXiv:1602.05629", server=_FED),
    Method("FedProx", "Li et al., 2020, arXiv:1812.06127", {"client_rule": "proximal"}, _FED, _GOSSIP),
    Method("SCAFFOLD", "Karimireddy et al., 2020, arXiv:1910.06378", {"client_rule": "scaffold"}, _FED),
    Method("FedDyn", "Acar et al., 2021, arXiv:2111.04263", {"client_rule": "feddyn"}, _FED),
    Method("FedAdam", "Reddi et al., 2021, arXiv:2003.00295", {"server_optimizer": "adam"}, _FED),
    Method("FedYogi", "Reddi et al., 2021, arXiv:2003.00295", {"server_optimizer": "yogi"}, _FED),
    Method("FedAdagrad", "Reddi et al., 2021, arXiv:2003.00295", {"server_optimizer": "adagrad"}, _FED),
    Method(
        "FedAvgM",
        "Hsu et al., 2019, arXiv:1909.06335",
        {"server_optimizer": "momentum"},
        {"lr": 1.0, **_FED},
    ),
    Method(
        "DiLoCo",
        "Douillard et al., 2023, arXiv:2311.08105",
        {"server_optimizer": "nesterov"},
        {"lr": 0.7, "client_optimizer": "adamw", **_FED},
    ),
    Method("FedExP", "Jhunjhunwala et al., 2023, arXiv:2301.09604", {"aggregator": "fedexp"}, _FED),
    Method("q-FedAvg", "Li et al., 2020, arXiv:1905.10497", {"aggregator": "qfedavg"}, _FED),
    Method("Median", "Yin et al., 2018, arXiv:1803.01498", {"aggregator": "median"}, _FED, _GOSSIP),
    Method(
        "TrimmedMean", "Yin et al., 2018, arXiv:1803.01498", {"aggregator": "trimmed_mean"}, _FED, _GOSSIP
    ),
    Method("Krum", "Blanchard et al., 2017, arXiv:1703.02757", {"aggregator": "krum"}, _FED, _GOSSIP),
    Method(
        "MultiKrum", "Blanchard et al., 2017, arXiv:1703.02757", {"aggregator": "multi_krum"}, _FED, _GOSSIP
    ),
    Method(
        "RFA", "Pillutla et al., 2022, arXiv:1912.13445", {"aggregator": "geometric_median"}, _FED, _GOSSIP
    ),
    Method(
        "CenteredClipping",
        "Karimireddy et al., 2021, arXiv:2012.10333",
        {"aggregator": "centered_clipping"},
        _FED,
        _GOSSIP,
    ),
    Method(
        "ClippedGossip",
        "He et al., 2022, arXiv:2202.01545",
        {"aggregator": "norm_bound"},
        server=None,
        graph=_GOSSIP,
    ),
    Method("FlexLoRA", "Bai et al., 2024, arXiv:2402.11505", {"lora_aggregation": "flexlora"}, _FED, _GOSSIP),
    Method(
        "LoRA-FAIR", "Bian et al., 2025, arXiv:2411.14961", {"lora_aggregation": "lora_fair"}, _FED, _GOSSIP
    ),
    Method("HetLoRA", "Cho et al., 2024, arXiv:2401.06432", {"lora_aggregation": "hetlora"}, _FED),
    Method(
        "FedEx-LoRA", "Singhal et al., 2025, arXiv:2410.09432", {"lora_aggregation": "fedex"}, _FED, _GOSSIP
    ),
    Method("FLoRA", "Wang et al., 2024, arXiv:2409.05976", {"lora_aggregation": "flora"}, _FED),
    Method("Ditto", "Li et al., 2021, arXiv:2012.04221", {"client_rule": "ditto"}, _FED),
    # A language model has no head that trains: its last layer stands for one.
    Method(
        "FedPer",
        "Arivazhagan et al., 2019, arXiv:1912.00818",
        server={"share": "body:1", **_FED},
        graph={"share": "body:0", **_GOSSIP},
    ),
    Method(
        "FedRep",
        "Collins et al., 2021, arXiv:2102.07623",
        {"client_rule": "fedrep"},
        {"share": "body:1", **_FED},
        {"share": "body:0", **_GOSSIP},
    ),
    Method(
        "LG-FedAvg",
        "Liang et al., 2020, arXiv:2001.01523",
        server={"share": "head:1", **_FED},
        graph={"share": "head:0", **_GOSSIP},
    ),
    Method("FedSA-LoRA", "Guo et al., 2025, arXiv:2410.01463", {"share": "a"}, _FED, _GOSSIP),
    Method("FFA-LoRA", "Sun et al., 2024, arXiv:2403.12313", {"train_factors": "b"}, _FED),
    Method(
        "FedSVD",
        "Lee et al., 2025, arXiv:2505.12805",
        {"train_factors": "b", "lora_aggregation": "fedsvd"},
        _FED,
    ),
    Method(
        "Fed-SB",
        "Singhal et al., 2025, arXiv:2502.15436",
        {"train_factors": "square", "lora_aggregation": "fedsb"},
        _FED,
    ),
    Method(
        "Ravan",
        "Raje et al., 2025, arXiv:2506.05568",
        {"train_factors": "heads", "lora_aggregation": "ravan"},
        _FED,
        _GOSSIP,
    ),
    Method("RoLoRA", "Chen et al., 2024, arXiv:2409.02346", {"train_factors": "alternate:1"}, _FED),
    Method("FedPAQ", "Reisizadeh et al., 2020, arXiv:1909.13014", {"compress": "int8"}, _FED, _GOSSIP),
    Method("MemSGD", "Stich et al., 2018, arXiv:1809.07599", {"compress": "topk:0.01"}, _FED),
    Method("EF-SignSGD", "Karimireddy et al., 2019, arXiv:1901.09847", {"compress": "sign"}, _FED),
    Method("PowerSGD", "Vogels et al., 2019, arXiv:1905.13727", {"compress": "powersgd:1"}, _FED),
    Method(
        "FedGPL",
        "ACM Transactions on Autonomous and Adaptive Systems, 2025, doi:10.1145/3717835",
        {"server_optimizer": "adam"},
        {"train_mode": "fedGradFocus"},
    ),
    Method("D-PSGD", "Lian et al., 2017, arXiv:1705.09056", server=None, graph=_GOSSIP),
    Method(
        "CHOCO-SGD",
        "Koloskova et al., 2019, arXiv:1902.00340",
        {"compress": "topk:0.01"},
        server=None,
        graph={"mixing_step": 0.05, **_GOSSIP},
    ),
    Method(
        "ADF-LoRA", "Wang et al., 2025, arXiv:2511.18291", {"train_factors": "alternate:1"}, None, _GOSSIP
    ),
    Method(
        "TAD-LoRA", "Wang et al., 2026, arXiv:2602.00451", {"train_factors": "alternate:5"}, None, _GOSSIP
    ),
    Method(
        "QG-DSGDm",
        "Lin et al., 2021, arXiv:2102.04761",
        {"client_rule": "quasi_global"},
        server=None,
        graph={"client_optimizer": "sgd", **_GOSSIP},
    ),
    Method(
        "K-GT",
        "Liu et al., 2023, arXiv:2301.01313",
        {"client_rule": "gradient_tracking"},
        server=None,
        graph={"client_optimizer": "sgd", **_GOSSIP},
    ),
    Method("DFL-LoRA", "freezes LoRA's A on a graph", server=None, graph={"training_type": "DFL-LoRA"}),
    Method(
        "DFL-GPL",
        "FedGPL's gradient priority without a server: neighbours vote",
        server=None,
        graph={"training_type": "DFL-LoRA", "layer_votes": "either"},
    ),
]
"""Every method by the name that the literature has for it."""

DOCUMENTED = {
    ("fed_alg", "FedAdam"): {"server_optimizer": "adam"},
    ("fed_alg", "FedAVG"): {"server_optimizer": "sgd"},
    ("fed_alg", "FedAvg"): {"server_optimizer": "sgd"},
    ("fed_alg", "FedProx"): {"server_optimizer": "sgd", "client_rule": "proximal"},
}
"""What the documented options of the original FedGPL set. Its FedAVG is SGD at lr, which need not be
client_lr.
"""


def method(name: str) -> Method | None:
    """The row of a name, in capitals or not."""
    return next((row for row in METHODS if row.name.lower() == name.lower()), None)


def with_method(given: Mapping[str, Any], *, server: bool, deployed: bool = False) -> dict[str, Any]:
    """Some given options, and beneath them what the method among them sets, if one is.

    Args:
        given: Options by name.
        server: Whether they are those of a run with a server.
        deployed: Whether they are those of real clients or peers: an aggregator that nobody names stays auto.
    """
    row = method(str(given.get("method"))) if given.get("method") else None
    settings = row.settings(server=server) if row else None
    if settings is None:
        return dict(given)
    parts = {part.option: part.default for part in PARTS if server or part.option != "server_optimizer"}
    if deployed:
        parts["aggregator"] = AUTO
    # An explicit fed_alg is an option like any other: it wins.
    documented = DOCUMENTED.get(("fed_alg", str(given.get("fed_alg"))), {})
    # "auto" leaves the choice to the method.
    explicit = {name: value for name, value in given.items() if name not in parts or value != AUTO}
    return {**parts, **settings, **documented, **explicit}


def chosen(config: Any) -> dict[str, str]:
    """The text that chooses each part: of its option, else of the documented options, else its default."""
    documented = DOCUMENTED.get(("fed_alg", getattr(config, "fed_alg", "")), {})
    found = {}
    for part in PARTS:
        given = getattr(config, part.option, AUTO)
        found[part.option] = documented.get(part.option, part.default) if given == AUTO else given
    return found
