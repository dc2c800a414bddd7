"""The options of training without a server, and of the tools around it; see `fedloom.options.fed`."""

from dataclasses import dataclass
from typing import Literal

from fedloom.options.attack import SimulatedAttack
from fedloom.options.declare import option
from fedloom.options.lora_variants import LoraVariants
from fedloom.options.method import AnyMethod, GraphMethod, sets_method
from fedloom.options.own_data import OwnData, Preferences
from fedloom.options.partition import Kind, Partition
from fedloom.options.privacy import Privacy
from fedloom.options.run import DATA_SEED, AnyTask, Hardware, Prompts, Run


@dataclass(frozen=True, kw_only=True)
class PeerModel:
    """Model and adapter."""

    model_checkpoint: str | None = option(
        None,
        "model, required: a name on the hub, a local folder, a GGUF file, smollm2-135m or minilm",
        path=True,
    )
    token: str | None = option(
        None, "hub token for gated models, else HF_TOKEN; never logged or saved", free=True, secret=True
    )
    trust_remote_code: bool = option(False, "run the Python code that comes with the model")
    training_type: Literal["DFL-LoRA", "ConLoRA", "LoRA"] = option(
        "DFL-LoRA",
        "LoRA: A and B train and mix; DFL-LoRA (ConLoRA is another name): A is frozen, the same for all, and "
        "averaging B averages the product exactly",
    )
    lora_r: int = option(4, "rank of LoRA", minimum=1, maximum=16_384)
    lora_alpha: int = option(
        32, "scale of LoRA; its product is multiplied by lora_alpha / lora_r", minimum=1, maximum=1_000_000
    )
    lora_dropout: float = option(0.01, "dropout before LoRA", minimum=0, maximum=0.99)
    target_modules: str | None = option(
        None,
        "layers that get LoRA: names with commas between, a regular expression for whole names, or "
        "all-linear; none: PEFT's default for the architecture, else the projections of query and value",
    )

    @property
    def frozen_a(self) -> bool:
        """Whether LoRA's A is frozen, the same for all."""
        return self.training_type != "LoRA"


@dataclass(frozen=True, kw_only=True)
class PeerData:
    """Data."""

    dataset_type: Literal["sst2", "mnli", "qnli", "gsm8k", "arithmetic", "qa"] | str = option(
        "sst2",
        "task: sst2, mnli, qnli are classified; gsm8k and qa, your own in data_dir, are answered in words; "
        "arithmetic whichever the model does; or owner/name of any data set on the hub, or your own file, "
        "folder or pattern, as data/*.jsonl",
        path=True,
    )
    data_dir: str | None = option(
        None,
        "local data with the task's fields, a folder or a file, for what the templates do not give",
        path=True,
    )
    max_length: int = option(512, "longest example in tokens", minimum=8, maximum=1_048_576)


@dataclass(frozen=True, kw_only=True)
class PeerNetwork:
    """Network."""

    num_clients: int = option(7, "peers", minimum=2, maximum=16_384)
    name: str = option(
        "link3",
        "graph: du14, link3 to link7 (seven peers), ring, complete, star, line, grid, torus, hypercube, "
        "random_regular:d=4, erdos_renyi:p=0.3, exponential, one_peer_exponential, random_pairs, file:PATH",
        path=True,
    )
    mix_head: bool = option(True, "average the classification head too; false: it stays with its peer")
    drop_peer: float = option(0.0, "probability that a peer sits a round out", minimum=0, maximum=0.99)
    drop_link: float = option(0.0, "probability that a link fails in a round", minimum=0, maximum=0.99)


@dataclass(frozen=True, kw_only=True)
class LayerPriority:
    """Gradient priority (layer_votes)."""

    layer_votes: Literal["none", "either", "both"] = option(
        "none",
        "peers vote on layers with their neighbours, train those that they select, and send a neighbour "
        "those that either of the two has selected, or both have; none: all layers, and no votes",
    )
    max_layer_num: int | None = option(
        None,
        "how many of the layers with the highest votes a peer selects; none: a quarter of all, rounded up",
        minimum=0,
        maximum=10_000,
    )
    min_layer_num: int = option(
        0,
        "how many of the layers with the lowest votes it selects beside them",
        minimum=0,
        maximum=10_000,
    )
    grad_eval: Literal[
        "l1", "l2", "lora_l1", "lora_l2", "lora_per_l1", "lora_per_l2", "random", "in_turn"
    ] = option(
        "lora_per_l1",
        "what a peer votes by, a layer's score on its own data: norm (l1 or l2) of the gradients of A and B, "
        "of the change of BA that they make (lora), or of that change relative to the weights (lora_per); "
        "random, in_turn: no votes, as many layers at random or one after another, the same for all peers",
    )
    rest_layers: bool = option(
        True, "layers that a peer has not selected rest; false: all train, and the selected ones are sent"
    )


@dataclass(frozen=True, kw_only=True)
class PeerTraining:
    """Training."""

    num_rounds: int = option(256, "rounds", minimum=1, free=True, maximum=10**8)
    local_epochs: int = option(1, "passes of a peer over its data per round", minimum=1, maximum=1000)
    local_steps: int | None = option(
        None, "batches of a peer per round, instead of local_epochs", minimum=1, maximum=100_000
    )
    batch_size: int = option(
        128, "examples per batch; every batch is an optimiser step", minimum=1, maximum=65_536
    )
    lr: float = option(1e-3, "learning rate", above=0, maximum=1000)
    client_optimizer: Literal["adam", "sgd", "adamw"] = option(
        "adam", "a peer's optimiser; its moments are its own and last across rounds"
    )
    clip_norm: float = option(0.0, "largest gradient norm of a peer's step; 0 is off", minimum=0, maximum=1e9)


@dataclass(frozen=True, kw_only=True)
class PeerReports:
    """Evaluation and reports."""

    eval_every: int = option(1, "rounds between evaluations of every peer", minimum=1, maximum=10**8)
    eval_point: Literal["after", "before"] = option(
        "after", "evaluate and report consensus after mixing, or before it"
    )
    eval_generate_every: int = option(
        0,
        "rounds between evaluations in which every peer writes its answers itself (val_answer_accuracy), for "
        "tasks that are answered in words; 0 is never",
        minimum=0,
        free=True,
        maximum=10**8,
    )
    eval_generate_limit: int = option(
        64,
        "validation problems that a peer answers then, from the first on",
        minimum=1,
        free=True,
        maximum=10**8,
    )
    val_limit: int | None = option(
        None,
        "validation examples of a peer that count, from the first on; none: all",
        minimum=1,
        free=True,
        maximum=10**8,
    )
    save_every: int = option(16, "rounds between checkpoints", minimum=1, free=True, maximum=10**8)
    log_path: str = option(
        "federated_training.log",
        "plain text log; a relative path lies in the run's folder",
        free=True,
        path=True,
    )


MOST_EVALUATED = 100
"""Peers that are evaluated where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class ManyPeers:
    """Which of many peers are evaluated and reported individually."""

    eval_peers: int | Literal["auto"] = option(
        "auto",
        "peers that are evaluated, and have their own numbers in metrics.jsonl and their own folder in "
        f"checkpoints, drawn by seed of those that do not attack; auto: all, of more than {MOST_EVALUATED} "
        "that many",
        minimum=1,
        maximum=10**8,
    )


@sets_method(server=False)
@dataclass(frozen=True, kw_only=True)
class DflConfig(
    Run,
    Hardware,
    PeerModel,
    LoraVariants,
    PeerData,
    OwnData,
    Preferences,
    Partition,
    Prompts,
    PeerNetwork,
    AnyMethod,
    GraphMethod,
    LayerPriority,
    PeerTraining,
    SimulatedAttack,
    Privacy,
    PeerReports,
    ManyPeers,
):
    """All options of `fedloom dfl`, by their flat names."""


@dataclass(frozen=True, kw_only=True)
class TopologyConfig:
    """Topology."""

    name: str = option("link3", "graph, as `fedloom dfl` takes it", path=True)
    num_clients: int = option(7, "peers", minimum=2, maximum=16_384)
    seed: int = option(3407, "seed of random graphs and of the picture", minimum=0, maximum=2**32 - 1)
    adapter_bytes: int | None = option(
        None,
        "bytes of a peer's adapter, to count those of a round",
        minimum=1,
        maximum=10**15,
    )
    output: str | None = option(None, "picture to write, .png or .svg", path=True)


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Split."""

    data_name: AnyTask | str = option(
        "sst2",
        "data set: one that is known (arithmetic comes with the package, qa is your own in data_dir), "
        "owner/name of any on the hub, or your own file, folder or pattern",
        path=True,
    )
    data_dir: str | None = option(None, "local data with the hub's fields, a folder or a file", path=True)
    num_clients: int = option(7, "clients", minimum=1, maximum=1_000_000)
    partition: Kind = option(
        "dirichlet",
        "iid: evenly; dirichlet: uneven in labels; quantity: uneven in size; shards: a few labels each; "
        "by_field: the examples of one value of a field stay together",
    )
    alpha: float = option(0.5, "Dirichlet concentration: small is uneven", above=0, maximum=1e6)
    min_size: int = option(1, "fewest examples of a client", minimum=1, maximum=10**8)
    labels_per_client: int = option(
        2, "labels that a client sees, with partition shards", minimum=1, maximum=10**6
    )
    field: str | None = option(None, "field that keeps examples together, with partition by_field")
    data_seed: int = option(
        DATA_SEED,
        "seed of what is held out where the data set lacks a split, and of who has what; as in training",
        minimum=0,
        maximum=2**32 - 1,
    )
    output_path: str = option("clients", "folder to write, new or empty", path=True)
    token: str | None = option(
        None, "hub token for gated data, else HF_TOKEN; never logged or saved", free=True, secret=True
    )


@dataclass(frozen=True, kw_only=True)
class SplitConfig(SplitOptions, OwnData):
    """All options of `fedloom split`, by their flat names."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """View."""

    folder: str = option("clients", "folder that holds client_1, client_2 and so on", path=True)
    output: str | None = option(None, "picture to write, .png or .svg", path=True)
