"""The frozen base model that all clients share: load it, quantise it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedloom.model.dequantised import in_cache, write_to_cache
from fedloom.model.files import check_files, check_model_name, dtypes_in, tensors_in
from fedloom.model.gguf_file import parsed_once
from fedloom.model.hardware import check_quantize, quantised, resolve_device
from fedloom.model.kinds import check_kind, encodes
from fedloom.model.layers import decoder_layers, layer_of
from fedloom.model.numbers import check_finite, check_stored_as_floats
from fedloom.model.precision import choose_dtype
from fedloom.model.source import Source, explained, locate
from fedloom.model.structure import rows_of, without_weights
from fedloom.model.template import check_template
from fedloom.model.weights import check_depth, check_shapes, check_weights

__all__ = ["BaseModel", "check_model_name", "check_quantize", "load_base", "resolve_device"]

BeforeWeights = Callable[[PreTrainedTokenizerBase, PreTrainedModel], None]
"""Is given a model's tokenizer, and the model without weights."""

# A classifier's new head is part of the frozen starting point, so it is the same in every run and process.
HEAD_SEED = 3407


@dataclass(frozen=True)
class BaseModel:
    """A frozen model in `eval()` mode and its tokenizer, which has a pad token.

    `name` is what an adapter gives as its base: the hub id behind an alias, else the name as given; of a GGUF
    file the folder in the cache that holds its weights.
    `drawn` are the layers that the files do not hold and that were drawn at random: they belong into the
    adapter.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    device: torch.device
    drawn: tuple[str, ...] = ()


def load_base(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    token: str | None = None,
    trust_remote_code: bool = False,
    num_labels: int | None = None,
    before_weights: BeforeWeights | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
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
            head that the files do not hold is drawn from a fixed seed, and so is a pooler.
        before_weights: called with the tokenizer and the model without weights before the weights are read,
            so
            that data or an adapter which do not fit the model are found out in time.
        tokenizer: the model's, where it has been loaded before.

    Raises:
        UserError: the model, the device or the quantisation cannot be had, the files are damaged or lack
            tensors,
            and how to mend it.
    """
    place = resolve_device(device)
    check_quantize(quantize, place)
    source = located(name)
    files = _files(source, token, trust_remote_code)
    with parsed_once():
        config = _configuration(source, files)
        check_kind(source.name, config, num_labels)
        if tokenizer is None:
            with explained(source, "its tokenizer"):
                tokenizer = AutoTokenizer.from_pretrained(**files)
                check_template(tokenizer, source.name)
                if not tokenizer("A text, as good as any.").input_ids:  # some damage shows only now
                    raise ValueError("it makes no token of a text")
        shapes = tensors_in(source)
        check_depth(config, shapes, source.name)
        check_stored_as_floats(config, dtypes_in(source), source.name)
        with explained(source, "what config.json describes"):
            structure = without_weights(config, num_labels, trust_remote_code)
        structure.name_or_path = source.name
        check_kind(source.name, config, num_labels, structure)
        check_shapes(structure, shapes, source.name, empty=True)
        if before_weights:
            before_weights(tokenizer, structure)
        auto = "bfloat16" if quantize != "none" and dtype == "auto" else dtype
        files["dtype"] = choose_dtype(auto, place, config)
        if source.gguf_file:
            with explained(source, "its weights"):
                source = write_to_cache(source, files, tokenizer)
            files = _files(source, token, trust_remote_code) | {"dtype": files["dtype"]}
        with explained(source, "its weights"), _seeded(place):
            try:
                model, drawn = _load_model(source, files, quantize, place, num_labels, structure)
            except Exception:
                check_shapes(structure, shapes, source.name, empty=False)  # the likely reason, in plain words
                raise
    _agree_on_padding(model, tokenizer)
    model.config._name_or_path = model.name_or_path = source.name
    return BaseModel(model.requires_grad_(False).eval(), tokenizer, source.name, place, drawn)


def is_encoder(name: str, *, token: str | None = None, trust_remote_code: bool = False) -> bool:
    """Whether a model reads text and cannot write it, by its configuration alone.

    Raises:
        UserError: the configuration cannot be had.
    """
    return encodes(configuration(name, token=token, trust_remote_code=trust_remote_code))


def configuration(
    name: str, *, token: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """A model's configuration, as its files have it.

    Raises:
        UserError: it cannot be had.
    """
    source = located(name)
    with parsed_once():
        return _configuration(source, _files(source, token, trust_remote_code))


def located(name: str) -> Source:
    """Where a model's files are, looked at; of a GGUF file the folder with its weights, once there is one.

    Raises:
        UserError: There are none, or one is damaged.
    """
    source = locate(name)
    check_files(source)
    return in_cache(source) or source if source.gguf_file else source


def base_name(name: str) -> str:
    """What an adapter for a model names as its base; of a GGUF file not before it has been loaded once."""
    return located(name).name


def _configuration(source: Source, files: dict[str, Any]) -> PretrainedConfig:
    with explained(source, "its configuration"):
        return AutoConfig.from_pretrained(**files)


def _files(source: Source, token: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What transformers' loaders need to find a model."""
    files = {"pretrained_model_name_or_path": source.location, "trust_remote_code": trust_remote_code}
    files |= {"gguf_file": source.gguf_file} if source.gguf_file else {}
    return files if source.local else files | {"token": token or None}


def _load_model(
    source: Source,
    files: dict[str, Any],
    quantize: str,
    device: torch.device,
    num_labels: int | None,
    structure: PreTrainedModel,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The model, and the names of its layers that were drawn at random."""
    auto = AutoModelForCausalLM if num_labels is None else AutoModelForSequenceClassification
    head = {} if num_labels is None else {"num_labels": num_labels}
    options: dict[str, Any] = {}
    if quantize != "none":
        plain = None if num_labels is None else _outside_the_layers(structure)
        options = quantised(quantize, files["dtype"], device, plain)

    def read(**how: Any) -> tuple[PreTrainedModel, tuple[str, ...]]:
        # Tensors of another size are reported too, instead of raising; `check_weights` lets only a head pass.
        model, report = auto.from_pretrained(
            **files, **head, **how, ignore_mismatched_sizes=True, output_loading_info=True
        )
        drawn = check_weights(model, report, source.name, num_labels is not None)
        check_finite(model, source.name)
        return model, drawn

    model, drawn = read(**options)
    return model if options else model.to(device), drawn


def _outside_the_layers(structure: PreTrainedModel) -> list[str]:
    """Linear layers that are not quantised: those before and behind the transformer's own, such as a head."""
    layers, _ = decoder_layers(structure)
    return [
        name
        for name, module in structure.named_modules()
        if isinstance(module, nn.Linear) and layer_of(name, layers) is None
    ]


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Draw a new head from its own seed and leave the global generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(HEAD_SEED)
        yield


def _agree_on_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give tokenizer and model the same pad token: classifiers of decoders look for it in their input.

    No pad token is ever looked at. So where the tokenizer's has no row in the embedding, the model pads with
    another that has one and that ends no text.
    """
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    rows, pad = rows_of(model), tokenizer.pad_token_id
    if rows is not None and pad is not None and pad >= rows:
        others = (tokenizer.bos_token_id, tokenizer.unk_token_id)
        pad = next((token for token in others if token is not None and token < rows), 0)
    model.config.pad_token_id = pad
    if model.can_generate():
        model.generation_config.pad_token_id = pad
