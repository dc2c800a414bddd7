"""Every option once: name, type, default, rule and meaning.

The flags, the keys of a YAML file, `--help`, the checks and the option table of the docs all come from
the dataclasses here. `options.parsing` turns a command line into one of them, `options.check_fed` judges the
values. None of this needs torch, so that `--help` and a bad value answer at once.
"""

from dataclasses import dataclass, fields
from typing import Literal

from fedloom.options.attack import SimulatedAttack
from fedloom.options.declare import option
from fedloom.options.lora_variants import LoraVariants
from fedloom.options.method import AnyMethod, ServerMethod, sets_method
from fedloom.options.own_data import OwnData, Preferences
from fedloom.options.partition import Partition
from fedloom.options.privacy import Privacy
from fedloom.options.run import AnyTask, Hardware, Prompts, Run
from fedloom.options.secure import SecureAggregation


@dataclass(frozen=True, kw_only=True)
class Model:
    """Model."""

    model_name: str = option(
        "meta-llama/Llama-2-7b-chat-hf",
        "causal language model or classifier: a name on the hub, a local folder, a GGUF file, smollm2-135m, "
        "or minilm",
        path=True,
    )
    token: str | None = option(
        None, "hub token for gated models, else HF_TOKEN; never logged or saved", free=True, secret=True
    )
    trust_remote_code: bool = option(False, "run the Python code that comes with the model")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Adapter."""

    peft: Literal["lora", "p-tuning", "prompt-tuning"] = option("lora", "which parameters train")
    lora_r: int | str = option(
        16,
        "rank of LoRA; several, as in 4,8,16, are given to the clients in turn",
        minimum=1,
        maximum=16_384,
    )
    lora_alpha: int = option(
        32, "scale of LoRA; its product is multiplied by lora_alpha / lora_r", minimum=1, maximum=1_000_000
    )
    lora_dropout: float = option(0.1, "dropout before LoRA", minimum=0, maximum=0.99)
    target_modules: str | None = option(
        None,
        "layers that get LoRA: names with commas between, a regular expression for whole names, or "
        "all-linear; none: PEFT's default for the architecture, else the projections of query and value",
    )
    num_virtual_tokens: int | None = option(
        None,
        "virtual tokens; default 20 for p-tuning, 40 for prompt-tuning",
        minimum=1,
        maximum=16_384,
    )

    @property
    def ranks(self) -> list[int]:
        """The ranks in `lora_r`, which clients get in turn."""
        return [self.lora_r] if isinstance(self.lora_r, int) else [int(r) for r in self.lora_r.split(",")]

    @property
    def virtual_tokens(self) -> int:
        """`num_virtual_tokens`, or the default of the chosen `peft`."""
        if self.num_virtual_tokens is not None:
            return self.num_virtual_tokens
        return 20 if self.peft == "p-tuning" else 40


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data."""

    data_name: AnyTask | str = option(
        "gsm8k",
        "data set: one that is known (arithmetic comes with the package, qa is your own in data_dir; sst2, "
        "qnli and mnli are classified), "
        "owner/name of any on the hub, or your own file, folder or pattern, as data/*.jsonl",
        path=True,
    )
    data_dir: str | None = option(
        None,
        "local data instead, with the same fields: a folder with train.* (jsonl, json, csv, parquet), one "
        "such file, or a save_to_disk folder",
        path=True,
    )
    max_length: int = option(
        512, "longest example in tokens; longer ones are dropped and counted", minimum=8, maximum=1_048_576
    )


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Federation."""

    train_mode: Literal["local", "fed", "fedGradFocus"] = option(
        "fedGradFocus", "local: one adapter on all data; fed: federated; fedGradFocus: with gradient priority"
    )
    fed_alg: Literal["FedAdam", "FedAVG", "FedAvg", "FedProx"] = option(
        "FedAdam",
        "server's rule: FedAdam applies the clients' mean change with AdamW at lr, FedAVG and FedProx with "
        "SGD at lr; FedAVG with lr = client_lr is the textbook's plain averaging of models",
    )
    client_num: int = option(50, "clients in the federation", minimum=1, maximum=1_000_000)
    client_num_per_step: int = option(
        4, "clients sampled per round; by default no more than there are", minimum=1, maximum=100_000
    )
    max_steps: int = option(6000, "federated rounds", minimum=1, free=True, maximum=10**8)
    lr: float = option(5e-4, "server learning rate", above=0, maximum=1000)
    prox_mu: float = option(0.01, "weight of FedProx's proximal term; 0 is FedAVG", minimum=0, maximum=1e6)


@dataclass(frozen=True, kw_only=True)
class ClientTraining:
    """Client training."""

    client_epoch: int = option(1, "epochs over the batches of a round", minimum=1, maximum=1000)
    client_batch_per_step: int = option(8, "batches a client draws per round", minimum=1, maximum=100_000)
    batch_size: int = option(2, "examples per batch", minimum=1, maximum=65_536)
    grad_accum_steps: int = option(4, "batches per optimiser step", minimum=1, maximum=100_000)
    grad_accum_mean: Literal["tokens", "batches"] = option(
        "tokens",
        "the loss of a step of several batches: tokens: mean over all its answer tokens, as of one larger "
        "batch; batches: mean over the batches' own means, as in the original FedGPL",
    )
    accumulate: Literal["mean", "sum"] = option(
        "mean",
        "gradient of a step of several batches: mean: as grad_accum_mean says; sum: that times the number of "
        "batches, as in the original FedGPL's clients",
    )
    client_lr: float = option(1e-4, "client learning rate", above=0, maximum=1000)
    client_optimizer: Literal["sgd", "adam", "adamw"] = option(
        "sgd",
        "a client's optimiser; the moments of adam and adamw are its own and last across rounds, or begin "
        "anew in each where lora_aggregation ends every round with new factors (fedsvd, flora)",
    )
    clip_norm: float = option(
        0.0, "largest gradient norm of a client's step; 0 is off", minimum=0, maximum=1e9
    )


@dataclass(frozen=True, kw_only=True)
class GradientPriority:
    """Gradient priority (fedGradFocus)."""

    max_layer_num: int = option(
        6,
        "how many of the layers with the highest scores are trained and sent",
        minimum=0,
        maximum=10_000,
    )
    min_layer_num: int = option(
        2,
        "how many of the layers with the lowest scores are trained and sent beside them",
        minimum=0,
        maximum=10_000,
    )
    grad_eval: Literal["l1", "l2", "lora_l1", "lora_l2", "lora_per_l1", "lora_per_l2"] = option(
        "lora_per_l1",
        "a layer's score: norm (l1 or l2) of the gradients of A and B, of the change of BA that they make "
        "(lora), or of that change relative to the weights (lora_per)",
    )
    layer_policy: Literal["priority", "random", "in_turn", "spaced", "last", "first", "all"] = option(
        "priority",
        "layers by score; or, for comparison, as many at random, one after another (in_turn), at even "
        "distances (spaced), the last, the first, or all",
    )
    layer_rounds: int = option(
        1,
        "rounds for which selected layers stay selected; 0: those of the first round stay",
        minimum=0,
        maximum=10**8,
    )
    server_data_fraction: float = option(
        0.005,
        "share of the training data that the server keeps to score layers, at least a batch",
        above=0,
        below=1,
    )
    server_batches: int = option(
        4, "batches of batch_size behind the server's gradient", minimum=1, maximum=100_000
    )
    server_grad_scale: float = option(
        0.1,
        "weight of the server's own gradient in layers that are not selected; 0: they rest",
        minimum=0,
        maximum=1e6,
    )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Validation."""

    val_steps: int = option(100, "rounds between validations", minimum=1, maximum=10**8)
    val_limit: int | None = option(
        None,
        "validation examples that count, from the first on; none: all",
        minimum=1,
        free=True,
        maximum=10**8,
    )
    patience: int = option(
        3,
        "stop after this many validations in a row without better accuracy; 0 is never",
        minimum=0,
        free=True,
        maximum=10**8,
    )
    eval_generate_every: int = option(
        0,
        "rounds between validations in which the model writes its answers itself (val_answer_accuracy); 0 is "
        "never",
        minimum=0,
        free=True,
        maximum=10**8,
    )
    eval_generate_limit: int = option(
        64,
        "validation problems that it answers then, from the first on",
        minimum=1,
        free=True,
        maximum=10**8,
    )


@sets_method(server=True)
@dataclass(frozen=True, kw_only=True)
class FedConfig(
    Run,
    Hardware,
    Model,
    Adapter,
    LoraVariants,
    Data,
    OwnData,
    Preferences,
    Partition,
    Prompts,
    Federation,
    AnyMethod,
    ServerMethod,
    ClientTraining,
    GradientPriority,
    SimulatedAttack,
    Privacy,
    SecureAggregation,
    Validation,
):
    """All options of `fedloom fed`, by their flat names."""

    def __post_init__(self) -> None:
        # Two documented spellings of one algorithm; everything behind this line knows one.
        if self.fed_alg == "FedAvg":
            object.__setattr__(self, "fed_alg", "FedAVG")

    @property
    def of_the_run(self) -> "FedConfig":
        """The options of `fedloom fed` alone, of a command that has more."""
        return FedConfig(**{field.name: getattr(self, field.name) for field in fields(FedConfig)})


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Demo."""

    rounds: int | None = option(
        None,
        "federated rounds; none: as many as end in two to four minutes, by what the first ones take",
        minimum=1,
        maximum=10**6,
    )
    problems: int | None = option(
        None,
        "problems of the test split that are answered before and after, and half as many of the validation "
        "split that count; none: by what the first ones take",
        minimum=1,
        maximum=200,
    )
    seed: int = option(3407, "seed of every random choice", minimum=0, maximum=2**32 - 1)
    out_dir: str = option("runs", "folder that holds the runs", path=True)
    exp_name: str = option("demo", "name of the run, and of its folder inside out_dir", path=True)
    device: str = option("auto", "auto (the first GPU, else the CPU), cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("auto", "precision of the frozen model")
