"""The options of the ways out of a run: `fedloom merge`, `fedloom chat`, `fedloom report`."""

from dataclasses import dataclass
from typing import Literal

from fedloom.options.declare import option


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """Model and adapter."""

    adapter: str | None = option(
        None,
        "a run's folder (its newest checkpoint), a checkpoint, or a PEFT adapter folder; may stand first, "
        "without --adapter",
        path=True,
    )
    round: int | None = option(
        None, "of a run's folder the checkpoint of this round, not the newest", minimum=1, maximum=10**15 - 1
    )
    model_name: str | None = option(
        None,
        "model: a name on the hub, a local folder, a GGUF file, smollm2-135m or minilm; none: that of the "
        "adapter's run, or the one that adapter_config.json names",
        path=True,
    )
    token: str | None = option(
        None, "hub token for gated models, else HF_TOKEN; never logged or saved", free=True, secret=True
    )
    trust_remote_code: bool = option(False, "run the Python code that comes with the model")


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What is merged, and where it goes."""

    client: int | None = option(
        None,
        "with a server: the adapter of this client, who has parameters of its own, and not the server's",
        minimum=1,
        maximum=10**9,
    )
    peer: int | Literal["mean"] | None = option(
        None,
        "without a server: the adapter of this peer, or the mean of all peers' models; none: the mean",
        minimum=1,
        maximum=10**9,
    )
    output_path: str | None = option(None, "new folder for the model, required", path=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision in which the model is merged and written; auto: that of the base's own files"
    )
    push_to_hub: str | None = option(
        None, "name on the hub, owner/model, to put the merged model there too; a new one is private"
    )


@dataclass(frozen=True, kw_only=True)
class MergeConfig(SavedModel, Merged):
    """All options of `fedloom merge`, by their flat names."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers."""

    system_prompt: Literal["auto", "none"] | str = option(
        "auto",
        "what the model is told in front of the conversation; auto: what the adapter was trained with; none: "
        "nothing",
        lines=True,
    )
    temperature: float = option(
        0.0, "how freely answers are drawn; 0: always the likeliest token", minimum=0, maximum=100
    )
    max_new_tokens: int = option(512, "longest answer in tokens", minimum=1, maximum=131_072)
    device: str = option("auto", "auto (the first GPU, else the CPU), cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision of the model; auto: bfloat16 where it is faster, else float32"
    )
    quantize: Literal["none", "8bit", "4bit"] = option("none", "quantise the model with bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SavedModel, Answers):
    """All options of `fedloom chat`, by their flat names."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Report."""

    runs: tuple[str, ...] = option(
        (),
        "folders of runs, <out_dir>/<exp_name>, or a folder that holds some; may stand first, without --runs",
        path=True,
    )
    output: str = option("report.html", "page to write; -o is short for it", path=True)
