"""Many clients' adapters on one frozen base: losses per client in one pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions as TrunkOutput

from fedloom.model.adapters.injection import inject
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.prompts import as_saved, virtual_tokens
from fedloom.model.attention import NAME, PackedPass
from fedloom.model.dropout import Draws
from fedloom.model.fused import fusable_rotary, fuse, rotating
from fedloom.model.last_layer import read_only_labels
from fedloom.model.layers import decoder_layers, layer_of
from fedloom.model.layout import Layout
from fedloom.model.loss import class_losses, token_losses
from fedloom.model.packing import Pack
from fedloom.model.probe import is_causal, packs, tolerance_of, trial_states
from fedloom.model.trunk import answering, keep_backward, position_offset, without_pooler
from fedloom.model.wave import StackedDropout, Wave, replace_module


@dataclass(frozen=True)
class Losses:
    """What a pass says of each client.

    Attributes:
        loss: The client's own weighted sum over its labels; differentiable.
        correct: Labels predicted right.
        labels: Labels in the pass.
        predicted: The likeliest class per label, client by client; None in language modelling.
    """

    loss: Float[Tensor, " clients"]
    correct: Int[Tensor, " clients"]
    labels: Int[Tensor, " clients"]
    predicted: Int[Tensor, " every"] | None


class Adapted(NamedTuple):
    """An adapted projection: PEFT's name for it, LoRA's ``alpha / r``, and the frozen layer."""

    name: str
    scale: float
    base: nn.Module


class StackedModel:
    """A frozen base through which the adapters of many clients run side by side.

    Attributes:
        model: The base; its adapted layers have been replaced by stacked ones.
        layout: How the model takes its tokens; give it to `build_pack`.
        initial: The adapter that everybody starts from, as PEFT initialises it, at least float32.
        config: The adapter's PEFT configuration; None without an adapter.
        adapted: For each transformer layer with LoRA, by its number, its adapted projections.
    """

    def __init__(
        self, model: PreTrainedModel, config: PeftConfig | None, *, seed: int, packed: bool | None = None
    ):
        """Put stacked adapters into ``model``.

        Args:
            model: Frozen base, a causal LM or a sequence classifier.
            config: Which adapter, where, how large; LoRA's dropout included; None: the base alone.
            seed: Of the initial adapter.
            packed: Lay sequences end to end; None: where a trial shows that the architecture allows it.
        """
        self.model, self.config = model.eval(), config
        self.trunk: nn.Module = model.base_model
        self._wave = Wave()
        self._takes = set(inspect.signature(self.trunk.forward).parameters)
        self._position_offset = position_offset(self.trunk)
        self._plain_attention = model.config._attn_implementation
        keep_backward(model)
        fuse(model)
        self._rotary = fusable_rotary(self.trunk)
        layout = Layout(
            packed=False,
            causal=is_causal(self.trunk),
            classify=not model.can_generate(),
            pad_id=model.config.pad_token_id or 0,
        )
        self.initial, virtual = inject(model, config, self._wave, seed) if config else ({}, 0)
        layers_name, layers = decoder_layers(model)
        self.adapted = _by_layer(model, layers_name)
        if packed is None:
            # A chunk is longer than the trial's sequences, which would not show what it does.
            chunked = getattr(model.config.get_text_config(), "attention_chunk_size", None)
            packed = not chunked and packs(self._hidden, layout, self.device)
        if packed:
            self._stack_dropout()
        read_only_labels(
            layers[-1],
            self._wave,
            lambda: trial_states(self._hidden, replace(layout, packed=packed), self.device),
            tolerance_of(model.dtype),
        )
        self.layout = replace(layout, packed=packed, virtual=virtual)

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.model.device

    def share_prefix(self, tokens: int) -> None:
        """Compute the first ``tokens`` tokens, which all sequences are known to share, once per client."""
        self.layout = replace(self.layout, prefix=tokens)

    def losses(self, parameters: Mapping[str, Tensor], pack: Pack, dropout_seed: int | None = None) -> Losses:
        """Run one pass.

        Args:
            parameters: ``{name: tensor[clients, *shape]}`` on the model's device; the losses are
                differentiable in those that require a gradient.
            pack: The clients' batches, built with `layout`.
            dropout_seed: The run's seed; None turns dropout off.
        """
        pack = pack.to(self.device)
        draws = None
        if dropout_seed is not None:
            draws = Draws(dropout_seed, pack.run_keys, pack.run_tokens, pack.real, self.device)
        hidden = self._hidden(parameters, pack, self.layout, draws)
        selected = hidden.reshape(-1, hidden.shape[-1]).index_select(0, pack.sources)
        head_draws = draws.for_labels(pack.run_labels) if draws else None
        with self._wave.through(parameters, pack.label_units, head_draws):
            predicted = None
            if self.layout.classify:
                per_label, predicted = class_losses(self._head(selected), pack.targets)
                correct = predicted == pack.targets
            else:
                vocabulary = self.model.config.get_text_config().vocab_size
                per_label, correct = token_losses(selected, pack.targets, self._head, vocabulary)
        return _by_client(per_label, correct, predicted, pack)

    @contextmanager
    def as_clients(self, parameters: Mapping[str, Tensor], units: Sequence[int]) -> Iterator[PreTrainedModel]:
        """The plain model, with each client's adapter in force for its own rows of a batch; for generation.

        Virtual tokens are not put in: see `virtual_tokens`.

        Args:
            parameters: ``{name: tensor[clients, *shape]}`` on the model's device; empty: the frozen base.
            units: Rows of each client, client by client.
        """
        self.trunk.eval()  # the last training pass may have left attention's dropout on
        with (
            self._wave.through(parameters, tuple(units)),
            self._attention(packed=False),
            rotating(self._rotary),
        ):
            yield self.model

    def save(self, row: Mapping[str, Tensor], folder: Path) -> None:
        """Write one client's adapter as an ordinary PEFT adapter folder."""
        assert self.config is not None, "the base alone has no adapter to save"
        folder.mkdir(parents=True, exist_ok=True)
        config = copy(self.config)
        config.inference_mode = True
        config.save_pretrained(str(folder))
        tensors = {name: t.detach().cpu().contiguous() for name, t in as_saved(row).items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _hidden(
        self, parameters: Mapping[str, Tensor], pack: Pack, layout: Layout, draws: Draws | None = None
    ) -> Float[Tensor, "rows columns width"]:
        """The trunk's last hidden states; only those at the pack's sources are meant to be read."""
        inputs: dict[str, Any] = {"use_cache": False} if "use_cache" in self._takes else {}
        prompts = virtual_tokens(parameters)
        if prompts is None or pack.virtual is None:
            inputs["input_ids"] = pack.ids
        else:
            inputs["inputs_embeds"] = self._with_virtual(pack, prompts)
        if pack.types is not None and "token_type_ids" in self._takes:
            inputs["token_type_ids"] = pack.types
        if layout.packed:
            inputs["position_ids"] = pack.position_ids + self._position_offset
            inputs["packed"] = PackedPass(pack, layout.causal, draws)
        else:
            inputs["attention_mask"] = pack.mask
        self.trunk.train(draws is not None and layout.packed)
        with (
            self._wave.through(parameters, pack.units, draws, pack.sources),
            self._attention(layout.packed),
            rotating(self._rotary),
            without_pooler(self.trunk),
        ):
            return self.trunk(**inputs).last_hidden_state

    def _with_virtual(self, pack: Pack, prompts: Tensor) -> Tensor:
        embedded = self.model.get_input_embeddings()(pack.ids)
        where, source = pack.virtual  # type: ignore[misc]
        flat_prompts = prompts.reshape(-1, prompts.shape[-1]).to(embedded.dtype)
        flat = embedded.reshape(-1, embedded.shape[-1])
        return flat.index_copy(0, where, flat_prompts.index_select(0, source)).view_as(embedded)

    def _head(self, selected: Float[Tensor, "labels width"]) -> Float[Tensor, "labels classes"]:
        """What the architecture makes of hidden states, whatever that is: its own code, the trunk skipped.

        Each selected position is given to it as a sequence of one token.
        """
        states = selected[:, None]
        pooler = getattr(self.trunk, "pooler", None)
        answer = TrunkOutput(last_hidden_state=states, pooler_output=pooler(states) if pooler else None)
        ids = torch.full(states.shape[:2], self.layout.pad_id + 1, device=states.device)
        with answering(self.trunk, answer):
            return self.model(input_ids=ids).logits.reshape(selected.shape[0], -1)

    @contextmanager
    def _attention(self, packed: bool) -> Iterator[None]:
        config, before = self.model.config, self.model.config._attn_implementation
        config._attn_implementation = NAME if packed else self._plain_attention
        try:
            yield
        finally:
            config._attn_implementation = before

    def _stack_dropout(self) -> None:
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Dropout) and module.p > 0:
                replace_module(self.model, name, StackedDropout(module.p, self._wave))


def _by_client(per_label: Tensor, correct: Tensor, predicted: Tensor | None, pack: Pack) -> Losses:
    clients = len(pack.label_units)
    weighted = per_label * pack.weights.to(per_label.dtype)
    zeros = torch.zeros(clients, dtype=per_label.dtype, device=per_label.device)
    counts = torch.zeros(clients, dtype=torch.long, device=per_label.device)
    return Losses(
        loss=zeros.index_add(0, pack.label_clients, weighted),
        correct=counts.index_add(0, pack.label_clients, correct.long()),
        labels=torch.tensor(pack.label_units, device=per_label.device),
        predicted=predicted,
    )


def _by_layer(model: nn.Module, layers_name: str) -> dict[int, list[Adapted]]:
    found: dict[int, list[Adapted]] = {}
    for name, module in model.named_modules():
        layer = layer_of(name, layers_name)
        if layer is not None and isinstance(module, StackedLora):
            found.setdefault(layer, []).append(Adapted(module.name, module.scale, module.base))
    return found
