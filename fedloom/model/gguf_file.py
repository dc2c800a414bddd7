"""Reading GGUF files through transformers, without the work it repeats."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import gguf
import numpy as np
import transformers
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils


class _FastReader(gguf.GGUFReader):
    """Slices a plain array: a slice of `np.memmap` costs several times more, and a vocabulary needs 10^5."""

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._data = mapped.view(np.ndarray)


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once while this lasts.

    It would parse the whole file for the tokenizer, the configuration and the weights each, and build the
    table of tensor names once per module of the model: for SmolLM2-135M 20 to 26 seconds instead of 8.
    """
    reader, name_map, bar = gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm
    gguf.GGUFReader = functools.cache(_FastReader)
    gguf.get_tensor_name_map = functools.cache(name_map)
    # Its bar does not listen to transformers' own switch for bars.
    modeling_gguf_pytorch_utils.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map
        modeling_gguf_pytorch_utils.tqdm = bar


def dequantise_options() -> dict[str, object]:
    """Arguments of `from_pretrained` that make every weight an ordinary dense one.

    Newer transformers keep the weights of some architectures packed otherwise; older ones always unpack.
    """
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def forget_quantisation(model: PreTrainedModel) -> None:
    """Remove what marks a dequantised model as quantised, so that it saves and loads as an ordinary one."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for mark in ("hf_quantizer", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)
    model.is_quantized = False
