"""The options of `fedloom eval`; see `fedloom.options.fed`."""

from dataclasses import dataclass
from typing import Literal

from fedloom.options.declare import option
from fedloom.options.own_data import BETA_HELP, COLUMNS_HELP, DPO_BETA, FORMAT_HELP, LIMIT_HELP, DataFormat
from fedloom.options.run import AnyTask, FormatName, Hardware


@dataclass(frozen=True, kw_only=True)
class EvalModel:
    """Model and adapters."""

    model_name: str | None = option(
        None,
        "model: a name on the hub, a local folder, a GGUF file, smollm2-135m or minilm; none: that of the "
        "adapter's run, or the one that adapter_config.json names",
        path=True,
    )
    model_checkpoint: str | None = option(None, "another name of model_name", path=True)
    adapter: str | None = option(
        None,
        "what to judge, with commas between: a PEFT adapter folder, a checkpoint of peers (all of them), or "
        "a run's folder (its newest checkpoint); none: the model without an adapter",
        path=True,
    )
    all_checkpoints: bool = option(False, "every checkpoint of the runs in adapter, not the newest alone")
    token: str | None = option(
        None, "hub token for gated models, else HF_TOKEN; never logged or saved", free=True, secret=True
    )
    trust_remote_code: bool = option(False, "run the Python code that comes with the model")


@dataclass(frozen=True, kw_only=True)
class EvalData:
    """Data."""

    data_name: AnyTask | str | None = option(
        None,
        "data set: one that is known (arithmetic comes with the package, qa is your own in data_dir), "
        "owner/name of any on the hub, or your own file, folder or pattern; none: that of the adapter's run",
        path=True,
    )
    dataset_type: AnyTask | str | None = option(None, "another name of data_name", path=True)
    data_dir: str | None = option(
        None,
        "local copy with the fields of the hub's data set; none: that of the adapter's run, or the hub",
        path=True,
    )
    data_format: DataFormat | None = option(None, f"{FORMAT_HELP}; none: that of the adapter's run, or auto")
    columns: str | None = option(None, f"{COLUMNS_HELP}; none: those of the adapter's run")
    system_prompt: Literal["auto", "none"] | str = option(
        "auto",
        "what a model is told in front of every question; auto: what the adapter was trained with, else the "
        "data set's own instruction; none: nothing",
        lines=True,
    )
    prompt_format: FormatName | None = option(
        None, "format of the prompts, as `fedloom fed` takes it; none: that of the adapter's run, or auto"
    )
    prompt_date: str | None = option(
        None,
        "day, YYYY-MM-DD, that a chat template with a clock is shown; none: that of the adapter's run, or "
        "the default of `fedloom fed`",
    )
    dpo_beta: float | None = option(
        None,
        f"of preferences, {BETA_HELP}; none: that of the adapter's run, or {DPO_BETA}",
        above=0,
        maximum=1000,
    )
    train_limit: int | None = option(
        None, f"{LIMIT_HELP}; none: that of the adapter's run, or all", minimum=1, maximum=10**9
    )
    split: Literal["test", "validation", "train"] = option("test", "which part of the data")
    limit: int | None = option(None, "only the first so many examples", minimum=1, maximum=10**9)
    data_seed: int | None = option(
        None,
        "decides what is held out where the data set has no such split; none: that of the adapter's run, "
        "or 3407",
        minimum=0,
        maximum=2**32 - 1,
    )


@dataclass(frozen=True, kw_only=True)
class EvalAnswers:
    """Answers and output."""

    batch_size: int = option(
        8, "prompts per pass and adapter; all adapters go into one pass", minimum=1, maximum=65_536
    )
    max_new_tokens: int = option(256, "longest answer in tokens", minimum=1, maximum=131_072)
    output_path: str | None = option(
        None,
        "folder for eval.json and predictions.jsonl; none: eval in the run's folder, or ./eval",
        path=True,
    )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(EvalModel, EvalData, EvalAnswers, Hardware):
    """All options of `fedloom eval`, by their flat names."""

    @property
    def model(self) -> str | None:
        """The model as given, under either name."""
        return self.model_name or self.model_checkpoint

    @property
    def task(self) -> str | None:
        """The task as given, under either name."""
        return self.data_name or self.dataset_type

    @property
    def adapter_paths(self) -> list[str]:
        """The paths in `adapter`."""
        return [path.strip() for path in (self.adapter or "").split(",") if path.strip()]
