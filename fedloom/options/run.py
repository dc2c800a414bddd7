"""The options that every run has, with a server and without one, and what evaluation has of them."""

from dataclasses import dataclass
from typing import Literal

from fedloom.options.declare import option

AnyTask = Literal[
    "gsm8k",
    "camel-ai/math",
    "ChilleD/SVAMP",
    "ChilleD/MultiArith",
    "arithmetic",
    "qa",
    "sst2",
    "qnli",
    "mnli",
]
"""Data sets by their names on the hub: of questions and answers, and the last three of classes."""


FormatName = Literal["auto", "plain", "llama-2", "zephyr"]
"""Formats of prompts; see `fedloom.data.templates.prompt_format`."""


PROMPT_DATE = "2024-07-26"
"""The day that chat templates with a clock are shown: the one that Llama 3 writes where it has no clock."""


DATA_SEED = 3407
"""Of `data_seed`, where nobody gives one: the same in training and evaluation."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run."""

    exp_name: str = option("test", "name of the run, and of its folder inside out_dir", free=True, path=True)
    out_dir: str = option("runs", "folder that holds the runs", free=True, path=True)
    config: str | None = option(
        None,
        "YAML file with options, the same names as the flags; flags win",
        free=True,
        path=True,
    )
    resume: bool = option(
        False, "continue the run of this name; options not given are the run's own", free=True
    )
    seed: int = option(3407, "seed of every random choice", minimum=0, maximum=2**32 - 1)
    data_seed: int = option(
        DATA_SEED,
        "seed of the data: what is held out where a data set lacks a split, the problems of arithmetic, who "
        "has which data; apart from seed, so that runs of several seeds are judged by the same examples",
        minimum=0,
        maximum=2**32 - 1,
    )
    report_to: str = option(
        "tensorboard",
        "where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, several with commas between, or "
        "none",
        free=True,
    )


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Hardware."""

    device: str = option("auto", "auto (the first GPU, else the CPU), cpu, cuda or cuda:N", free=True)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision of the frozen model; auto: bfloat16 where it is faster, else float32"
    )
    quantize: Literal["none", "8bit", "4bit"] = option(
        "none", "quantise the frozen model with bitsandbytes; 4bit is NF4 with bfloat16 compute"
    )
    wave_tokens: int | Literal["auto"] = option(
        "auto",
        "tokens that train in one pass; auto: by the free memory; changes only speed",
        minimum=1,
        free=True,
        maximum=10**9,
    )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompts."""

    system_prompt: Literal["auto", "none"] | str = option(
        "auto",
        "what a model is told in front of every question, as a system message where its format has such; "
        "auto: the data set's own instruction, none: nothing",
        lines=True,
    )
    prompt_format: FormatName = option(
        "auto",
        "auto: the chat template of the model's tokenizer, without one as plain; plain: instruction, "
        "question and answer in lines; llama-2, zephyr: those of Llama 2 chat and of TinyLlama chat, for "
        "copies without a template",
    )
    prompt_date: str = option(
        PROMPT_DATE,
        "day, YYYY-MM-DD, that a chat template with a clock is shown: the same in every round, client and "
        "evaluation, whenever they are",
    )
