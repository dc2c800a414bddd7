"""The frozen base model that all clients share: load it, quantise it."""

import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fedloom.config import UserError
from fedloom.model.gguf_file import dequantise_options, forget_quantisation, parsed_once
from fedloom.model.precision import choose_dtype
from fedloom.model.source import Source, check_model_name, explain, locate

__all__ = ["BaseModel", "check_model_name", "load_base", "resolve_device"]

log = logging.getLogger(__name__)

# A classifier's new head is part of the frozen starting point, so it is the same in every run and process.
HEAD_SEED = 3407


@dataclass(frozen=True)
class BaseModel:
    """A frozen model in `eval()` mode and its tokenizer, which has a pad token.

    `name` is what an adapter gives as its base: the hub id behind an alias, else the name as given.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    device: torch.device


def load_base(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    token: str | None = None,
    trust_remote_code: bool = False,
    num_labels: int | None = None,
    with_tokenizer: Callable[[PreTrainedTokenizerBase], None] | None = None,
) -> BaseModel:
    """Load a model and its tokenizer, frozen.

    Args:
        name: a hub id, a saved model's folder, a GGUF file, or an alias (`smollm2-135m`, `minilm`).
            `fedloom.model.source` says where each is looked for.
        device: `auto` (the first GPU, else the CPU), `cpu`, `cuda:0`, ...
        dtype: of the weights; `auto` as `choose_dtype` says, bfloat16 with `quantize`.
        quantize: `none`, `8bit`, or `4bit` (NF4 that computes in `dtype`), through bitsandbytes. On a CPU it
            saves memory and costs time. Heads stay as they are.
        token: for gated models; the hub's own settings (`HF_TOKEN`) where it is empty.
        trust_remote_code: whether code that comes with the model may run.
        num_labels: None for a causal language model; else a sequence classifier with that many classes. A
            head that the files do not hold is drawn from a fixed seed.
        with_tokenizer: called with the tokenizer before the weights are read, so that data which do not
            fit the model are found out in time.

    Raises:
        UserError: the model, the device or the quantisation cannot be had, and how to mend it.
    """
    place = resolve_device(device)
    check_quantize(quantize, place)
    source = locate(name)
    files = _files(source, token, trust_remote_code)
    try:
        with parsed_once(), _seeded(place):
            tokenizer = AutoTokenizer.from_pretrained(**files)
            config = AutoConfig.from_pretrained(**files)
            _check_kind(source, config, num_labels)
            _say_of_new_head(config, num_labels)
            if with_tokenizer:
                with_tokenizer(tokenizer)
            auto = "bfloat16" if quantize != "none" and dtype == "auto" else dtype
            files["dtype"] = choose_dtype(auto, place, config)
            model = _load_model(source, files, quantize, place, num_labels)
    except UserError:
        raise
    except Exception as error:
        mistake = explain(source, error)
        if mistake is None:
            raise
        raise mistake from error
    _agree_on_padding(model, tokenizer)
    model.config._name_or_path = model.name_or_path = source.name
    return BaseModel(model.requires_grad_(False).eval(), tokenizer, source.name, place)


def is_encoder(name: str, *, token: str | None = None, trust_remote_code: bool = False) -> bool:
    """Whether a model reads text and cannot write it, by its configuration alone.

    Raises:
        UserError: the configuration cannot be had.
    """
    return _encodes(configuration(name, token=token, trust_remote_code=trust_remote_code))


def configuration(
    name: str, *, token: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """A model's configuration, as its files have it.

    Raises:
        UserError: it cannot be had.
    """
    source = locate(name)
    try:
        with parsed_once():
            return AutoConfig.from_pretrained(**_files(source, token, trust_remote_code))
    except Exception as error:
        raise explain(source, error) or error from error


def _files(source: Source, token: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What transformers' loaders need to find a model."""
    files = {"pretrained_model_name_or_path": source.location, "trust_remote_code": trust_remote_code}
    files |= {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return files if source.local else files | {"token": token or None}


def _load_model(
    source: Source, files: dict[str, Any], quantize: str, device: torch.device, num_labels: int | None
) -> PreTrainedModel:
    auto = AutoModelForCausalLM if num_labels is None else AutoModelForSequenceClassification
    # A head for other classes than these is as good as none: a new one is drawn.
    head = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    quantised = {} if quantize == "none" else _quantised(quantize, files["dtype"], device)
    if source.gguf_file:
        model = auto.from_pretrained(**files, **head, **dequantise_options())
        forget_quantisation(model)
        if not quantised:
            return model.to(device)
        # bitsandbytes quantises while it loads ordinary files, so the model goes through a folder of them.
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            return auto.from_pretrained(folder, dtype=files["dtype"], **quantised)
    model = auto.from_pretrained(**files, **head, **quantised)
    return model if quantised else model.to(device)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Draw a new head from its own seed and leave the global generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(HEAD_SEED)
        yield


def _check_kind(source: Source, config: PretrainedConfig, num_labels: int | None) -> None:
    """An encoder loads as a language model too, with a head of noise; that is never meant."""
    if num_labels is None and _encodes(config):
        raise UserError(
            f"model {source.name!r}: a {config.model_type} encoder, which classifies but does not write "
            "answers. Choose a causal language model, or a classification task."
        )


def _say_of_new_head(config: PretrainedConfig, num_labels: int | None) -> None:
    trained = any("SequenceClassification" in name for name in config.architectures or [])
    if num_labels is not None and trained and config.num_labels != num_labels:
        log.warning(
            "the model's head is for %d classes, the task has %d: it is replaced by a new one",
            config.num_labels,
            num_labels,
        )


def _encodes(config: PretrainedConfig) -> bool:
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)


def _agree_on_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give tokenizer and model the same pad token: classifiers of decoders look for it in their input."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.can_generate():
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def _quantised(quantize: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    if quantize == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return {"quantization_config": config, "device_map": {"": device}}


def check_quantize(quantize: str, device: torch.device) -> None:
    """Say early that bitsandbytes is missing or does not work on this device.

    Raises:
        UserError: with the way to mend it.
    """
    if quantize == "none":
        return
    if quantize not in ("8bit", "4bit"):
        raise UserError(f"quantize {quantize!r}: must be one of none, 8bit, 4bit.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantize {quantize!r}: needs bitsandbytes, which is not installed. "
            "Install it: pip install 'fedloom[quantize]'; or use --quantize none."
        )
    try:
        devices = set(importlib.import_module("bitsandbytes").supported_torch_devices)
    except Exception as error:  # a build that does not fit this machine fails in many ways
        raise UserError(
            f"quantize {quantize!r}: bitsandbytes is installed but does not start here ({error}). "
            "Reinstall it: pip install -U 'fedloom[quantize]'; or use --quantize none."
        ) from error
    if device.type not in devices:
        raise UserError(
            f"quantize {quantize!r}: this bitsandbytes works on {', '.join(sorted(devices))}, "
            f"not on device {str(device)!r}. Choose another device, or --quantize none."
        )


def resolve_device(device: str) -> torch.device:
    """The device of this name; `auto` is the first CUDA GPU, else the CPU.

    Raises:
        UserError: there is no such device on this machine.
    """
    found = ["cpu"]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    if device == "auto":
        return torch.device("cuda:0" if "cuda:0" in found else "cpu")
    wanted = device if ":" in device or device == "cpu" else f"{device}:0"
    if wanted not in found:
        raise UserError(f"device {device!r}: there is no such device here. Choose auto, {', '.join(found)}.")
    return torch.device(wanted)
