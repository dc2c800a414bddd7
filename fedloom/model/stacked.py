"""Many clients' adapters on one frozen base: losses per client in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedloom.model.adapters.folding import FoldedBase
from fedloom.model.adapters.injection import adapted_by_layer, inject
from fedloom.model.adapters.lora import StackedLora
from fedloom.model.adapters.ranks import at_ranks
from fedloom.model.adapters.saving import save_adapter
from fedloom.model.adapters.square import as_lora
from fedloom.model.bank import Row
from fedloom.model.dropout import Draws
from fedloom.model.forward import Forward
from fedloom.model.fused import fusable_rotary, fuse
from fedloom.model.last_layer import read_only_labels
from fedloom.model.layers import decoder_layers
from fedloom.model.layout import Head, Layout
from fedloom.model.lengths import longest_together, scaled_early, watch_top_k
from fedloom.model.loss import class_losses, token_losses
from fedloom.model.losses import Losses, by_client, by_client_compared
from fedloom.model.pack import Apart, Pack
from fedloom.model.packing import build_pack
from fedloom.model.pads import skip_pads
from fedloom.model.trial import choose_way, explained, in_float32, is_causal, tolerance_of, ways
from fedloom.model.trial_clients import Clients, as_tried, trial_clients, two_adapters
from fedloom.model.trunk import find_anatomy, keep_backward, states_of
from fedloom.model.wave import Wave, drops, stack_dropout


class StackedModel:
    """A frozen base through which the adapters of many clients run side by side.

    Attributes:
        model: The base; its adapted layers have been replaced by stacked ones.
        layout: How the model takes its tokens; give it to `build_pack`.
        initial: The adapter that everybody starts from, as PEFT initialises it, at least float32.
        config: The adapter's PEFT configuration; None without an adapter.
        adapted: For each transformer layer with LoRA, by its number, its adapted projections.
        beta: Of the loss of preferences; see `losses.by_client_compared`.
        trunk: What leads from token ids to hidden states; the model itself where nothing else does.
    """

    def __init__(
        self, model: PreTrainedModel, config: PeftConfig | None, *, seed: int, packed: bool | None = None
    ):
        """Put stacked adapters into ``model``, and find out by a trial how it is best run.

        Args:
            model: Frozen base, a causal LM or a sequence classifier.
            config: Which adapter, where, how large; LoRA's dropout included; None: the base alone.
            seed: Of the initial adapter.
            packed: False: sequences are not laid end to end, even where that would be right.

        Raises:
            UserError: the architecture cannot be run with stacked adapters.
        """
        self.model, self.config = model.eval(), config
        self.beta = 0.1
        self._drops = drops(model, config)
        wave = Wave()
        keep_backward(model)
        layers_name, layers = decoder_layers(model)
        dtype = model.dtype  # in which it will rotate, whatever the trial computes in
        with torch.no_grad(), in_float32(model), scaled_early(model):
            clients = trial_clients(model, 0)
            first = torch.tensor([clients[0][0].sequences[0].ids] * 2, device=model.device)
            with explained(model):
                anatomy = find_anatomy(model, layers_name, first)
                self.trunk: nn.Module = anatomy.trunk if anatomy else model
                self._forward = Forward(model, anatomy, wave, [])
                self.layout = Layout(
                    packed=False,
                    causal=self._looks_back(int(first[0, -1])),
                    classify=not model.can_generate(),
                    pad_id=self._forward.pad_id,
                    together=longest_together(model),
                )
                plainly = replace(self.layout, head=Head.MODEL, together=0)
                plain, picks = watch_top_k(lambda: self._logits({}, clients, plainly))
            together = self.layout.together
            if picks and self._forward.dense is None:  # nobody knows from how many on
                together = self._forward.dense = 0
            self.layout = replace(self.layout, together=as_tried(together, clients))
            fuse(model)
            self._forward.rotary = fusable_rotary(model, dtype)
            self.initial, virtual = inject(model, config, wave, seed) if config else ({}, 0)
            self.adapted = adapted_by_layer(model, layers_name)
            self._base = FoldedBase(model)
            for name, module in model.named_modules():
                if isinstance(module, StackedLora) and anatomy:
                    module.behind_trunk = name in anatomy.behind
            self.layout = replace(self.layout, virtual=virtual)
            adapters, clients = two_adapters(self.initial, model.device), trial_clients(model, virtual)
            possible = list(ways(self.layout, packed, whole_only=anatomy is None))
            self.layout = choose_way(self._logits, plain, adapters, possible, clients, model)
            if not self.layout.packed:
                whole = partial(self._logits, adapters, clients, self.layout)
                skip_pads(model, layers_name, wave, whole, tolerance_of(model))
        if self.layout.packed:
            anatomy = self._forward.anatomy
            stack_dropout(model, wave, anatomy.behind if anatomy else frozenset())
        if self.layout.head is Head.LABELS:
            layout = replace(self.layout, virtual=0)
            laid = build_pack(trial_clients(model, 0), layout)
            pack = (laid.packs[0][1] if isinstance(laid, Apart) else laid).to(self.device)
            draws = self._draws(pack, 0) if pack.packed and self._drops else None
            read_only_labels(layers, wave, lambda: self._selected({}, pack, layout), draws)

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return self.model.device

    @property
    def wave(self) -> Wave:
        """What the stacked modules look at."""
        return self._forward.wave

    def share_prefix(self, tokens: int) -> None:
        """Compute the first ``tokens`` tokens, which all sequences are known to share, once per client."""
        self.layout = replace(self.layout, prefix=tokens)

    def losses(
        self, parameters: Mapping[str, Tensor], pack: Pack | Apart, dropout_seed: int | None = None
    ) -> Losses:
        """Run one pass; batches that have to run by themselves one after another.

        Args:
            parameters: ``{name: tensor[clients, *shape]}`` on the model's device; the losses are
                differentiable in those that require a gradient.
            pack: The clients' batches, built with `layout`.
            dropout_seed: The run's seed; None turns dropout off.
        """
        parameters = as_lora(parameters)
        if isinstance(pack, Pack):
            return self._one_pass(parameters, pack, dropout_seed)
        count = len(pack.client_tokens)
        zeros = torch.zeros(count, dtype=torch.long, device=self.device)
        loss, correct, labels = torch.zeros(count, dtype=torch.float64, device=self.device), zeros, zeros
        predicted, margins = [], []
        for client, part in pack.packs:
            own = {name: t[client : client + 1] for name, t in parameters.items()}
            out = self._one_pass(own, part, dropout_seed)
            at = torch.tensor([client], device=self.device)
            loss = loss.index_add(0, at, out.loss.to(loss.dtype))
            correct, labels = correct.index_add(0, at, out.correct), labels.index_add(0, at, out.labels)
            predicted.append(out.predicted)
            if out.margins is not None:
                margins.append(out.margins)
        every = torch.cat(predicted) if self.layout.classify else None  # type: ignore[arg-type]
        return Losses(loss, correct, labels, every, torch.cat(margins) if margins else None)

    @contextmanager
    def as_clients(self, parameters: Mapping[str, Tensor], units: Sequence[int]) -> Iterator[PreTrainedModel]:
        """The plain model, with each client's adapter in force for its own rows of a batch; for generation.

        Virtual tokens are not put in: see `virtual_tokens`.

        Args:
            parameters: ``{name: tensor[clients, *shape]}`` on the model's device; empty: the frozen base.
            units: Rows of each client, client by client.
        """
        with self._forward.plainly(as_lora(parameters), tuple(units)) as model:
            yield model

    def fold(self, base: Row) -> None:
        """Run on a base that a server has changed from here on; see `model.adapters.folding`.

        Args:
            base: How, ``{module: tensor[d_out, d_in]}``; empty: the base as it was loaded.
        """
        self._base.set(base)

    def check_foldable(self) -> None:
        """Make sure that the base may be changed.

        Raises:
            UserError: A weight is quantised, or belongs to other layers too.
        """
        self._base.check()

    def at_ranks(self, parameters: Mapping[str, Tensor], ranks: Sequence[int] | None) -> Mapping[str, Tensor]:
        """The parameters to give to `losses` and `as_clients`, so that each client has its own LoRA rank.

        Args:
            parameters: ``{name: tensor[clients, *shape]}``; the result is differentiable in them.
            ranks: Of each client, and each has the scale ``alpha / rank``; None: all have the adapter's own.

        Raises:
            UserError: The adapter cannot have such ranks.
        """
        if ranks is None or self.config is None:
            return parameters
        return at_ranks(parameters, self.config, ranks)

    def save(
        self, row: Mapping[str, Tensor], folder: Path, rank: int | None = None, base: Row | None = None
    ) -> None:
        """Write one client's adapter as an ordinary PEFT adapter folder.

        Args:
            row: The adapter.
            folder: Made where it is missing.
            base: How the base has changed, which goes into the folder as an adapter of a higher rank.
            rank: The client's LoRA rank, which is then the folder's, so that PEFT's scale is the client's;
                None: the adapter's own.

        Raises:
            UserError: The adapter cannot have such a rank.
        """
        assert self.config is not None, "the base alone has no adapter to save"
        save_adapter(self.config, row, folder, rank, base)

    def _one_pass(self, parameters: Mapping[str, Tensor], pack: Pack, dropout_seed: int | None) -> Losses:
        pack = pack.to(self.device)
        draws = None if dropout_seed is None else self._draws(pack, dropout_seed)
        whole = self.layout.whole(pack.packed)
        if whole:
            selected = self._forward.whole(parameters, pack, draws)
        else:
            selected = self._selected(parameters, pack, self.layout, draws)
        head_draws = draws.for_labels(pack.run_labels) if draws else None
        units = pack.label_units
        columns = 1 if self.layout.head is Head.LABELS else pack.longest
        with self._forward.wave.through(parameters, units, columns=columns, draws=head_draws, in_head=True):
            predicted = None
            if self.layout.classify:
                logits = selected if whole else self._classes(selected, pack, self.layout)
                per_label, predicted = class_losses(logits, pack.targets)
                correct = predicted == pack.targets
            else:
                head = (lambda logits: logits) if whole else self._forward.head
                vocabulary = self.model.config.get_text_config().vocab_size
                per_label, correct = token_losses(selected, pack.targets, head, vocabulary)
        if pack.pairs is not None:
            return by_client_compared(per_label, pack.pairs, len(units), self.beta)
        return by_client(per_label, correct, predicted, pack)

    def _draws(self, pack: Pack, seed: int) -> Draws:
        return Draws(seed, pack.run_keys, pack.run_tokens, pack.real, self.device, pack.ids.numel())

    def _selected(
        self, parameters: Mapping[str, Tensor], pack: Pack, layout: Layout, draws: Draws | None = None
    ) -> Float[Tensor, "labels width"] | Float[Tensor, "1 tokens width"]:
        """Hidden states that the head is given: where a label is predicted, or all that it pools over."""
        pools = layout.head is Head.SEQUENCES
        states = self._forward.states(
            parameters, pack, layout.causal, draws, read=None if pools else pack.sources
        )
        return states if pools else states.reshape(-1, states.shape[-1]).index_select(0, pack.sources)

    def _classes(self, selected: Tensor, pack: Pack, layout: Layout) -> Float[Tensor, "labels classes"]:
        if layout.head is Head.SEQUENCES:
            return self._forward.pooled(selected, pack)
        return self._forward.head(selected)

    def _logits(self, parameters: Mapping[str, Tensor], clients: Clients, layout: Layout) -> Tensor:
        """Logits of all labels of a trial, run in a given way, ``[labels, classes]``."""
        laid = build_pack(clients, replace(layout, prefix=1 if layout.packed else 0))
        packs = laid.packs if isinstance(laid, Apart) else ((None, laid),)
        found = []
        for client, pack in packs:
            own = parameters if client is None else {n: t[client : client + 1] for n, t in parameters.items()}
            pack = pack.to(self.device)
            if layout.whole(pack.packed):
                found.append(self._forward.whole(own, pack))
                continue
            selected = self._selected(own, pack, layout)
            if pack.packed and self._drops:
                self._selected(own, pack, layout, self._draws(pack, 0))  # dropout is to find every token, too
            columns = 1 if layout.head is Head.LABELS else pack.longest
            with self._forward.wave.through(own, pack.label_units, columns=columns, in_head=True):
                found.append(self._classes(selected, pack, layout))
        return torch.cat(found)

    def _looks_back(self, token: int) -> bool:
        """Whether a token sees only what stands before it."""
        if self._forward.anatomy is None:
            return self.model.can_generate()
        trunk = self._forward.anatomy.trunk
        return is_causal(lambda ids: states_of(trunk(input_ids=ids)), token, self.device)
