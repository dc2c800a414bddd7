"""A frozen model's forward pass, whole or as trunk and head, with many clients' adapters in force."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedloom.model.adapters.prompts import virtual_tokens
from fedloom.model.attention import NAME, PackedPass
from fedloom.model.block_sparse import BlockSparse
from fedloom.model.dropout import Draws
from fedloom.model.fused import rotating
from fedloom.model.lengths import forget_lengths, longest_dense
from fedloom.model.own_attention import find_own_attention, replaced
from fedloom.model.pack import Pack
from fedloom.model.trunk import (
    Anatomy,
    answering,
    listening,
    position_offset,
    states_of,
)
from fedloom.model.wave import Wave


class Forward:
    """Runs a model's own code on packs.

    Attributes:
        model: The model, whose adapted modules are stacked ones.
        anatomy: Its trunk and head; None where they cannot be told apart.
        wave: What the stacked modules look at.
        rotary: Modules of source code whose rotation is replaced by a faster one.
        dense: Tokens of a text up to which attention keeps all of them (`longest_dense`). Beyond, every row
            of a pass is computed, pads included: picking looks at what a shorter text leaves unread.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy | None, wave: Wave, rotary: list[str]):
        self.model, self.anatomy, self.wave, self.rotary = model, anatomy, wave, rotary
        self.dense = longest_dense(model)
        self._block_sparse = BlockSparse(model)
        self._offset = position_offset(model)
        self._own_attention = find_own_attention(model)
        self._rotaries = [module for module in model.modules() if hasattr(module, "original_max_seq_len")]
        configs = {
            id(module.config): module.config for module in model.modules() if hasattr(module, "config")
        }
        self._implementations = [
            (config, config._attn_implementation)
            for config in configs.values()
            if hasattr(config, "_attn_implementation")
        ]

    def states(
        self,
        parameters: Mapping[str, Tensor],
        pack: Pack,
        causal: bool,
        draws: Draws | None = None,
        read: Tensor | None = None,
    ) -> Float[Tensor, "rows columns width"]:
        """The trunk's last hidden states.

        Args:
            parameters: ``{name: tensor[clients, *shape]}``; empty: the frozen base.
            pack: The tokens.
            causal: A token sees only what stands before it.
            draws: Dropout masks; None turns dropout off.
            read: Positions whose state is meant to be read; None: all of them.
        """
        assert self.anatomy is not None
        trunk, core = self.anatomy.trunk, self.anatomy.core
        rows = read if self._keeps_all(pack) else None
        trunk.train(draws is not None and pack.packed)
        with (
            self._as_fresh(pack),
            self.wave.through(parameters, pack.units, draws=draws, rows=rows, **self._places(pack)),
            self._attention(pack, causal, draws),
            rotating(self.rotary),
            listening(core) if core is not trunk else nullcontext() as heard,
        ):
            output = trunk(**self._inputs(trunk, parameters, pack))
        states = heard[-1] if heard else states_of(output)
        return states[:, : pack.ids.shape[1]]  # BigBird's own pads stand behind

    def whole(
        self, parameters: Mapping[str, Tensor], pack: Pack, draws: Draws | None = None
    ) -> Float[Tensor, "labels classes"]:
        """Logits where a label is predicted, of the model as it is; a padded pack."""
        self.model.eval()
        with (
            self._as_fresh(pack),
            self.wave.through(parameters, pack.units, draws=draws, in_head=True, **self._places(pack)),
            rotating(self.rotary),
        ):
            logits = self.model(**self._inputs(self.model, parameters, pack)).logits
        if logits.dim() == 2:
            return logits
        return logits.reshape(-1, logits.shape[-1]).index_select(0, pack.sources)

    def head(self, selected: Float[Tensor, "labels width"]) -> Float[Tensor, "labels classes"]:
        """What the architecture makes of hidden states: its own code, the trunk skipped.

        Each selected position is given to it as a sequence of one token.
        """
        ids = torch.full((selected.shape[0], 1), self.pad_id + 1, device=selected.device)
        return self._behind(selected[:, None], {"input_ids": ids}).reshape(selected.shape[0], -1)

    def pooled(
        self, states: Float[Tensor, "1 tokens width"], pack: Pack
    ) -> Float[Tensor, "sequences classes"]:
        """The same for a head that pools over whole sequences: it is given them padded, with their mask."""
        places, mask = pack.by_sequence()
        whole = states[0].index_select(0, places.flatten()).view(*places.shape, -1)
        # A head may look for the last token that is no pad.
        ids = torch.where(mask, pack.ids[0, places], self.pad_id)
        return self._behind(whole, {"input_ids": ids, "attention_mask": mask.long()})

    @property
    def pad_id(self) -> int:
        """Any valid token id that is the model's pad token where it has one."""
        return getattr(self.model.config, "pad_token_id", None) or 0

    @contextmanager
    def plainly(self, parameters: Mapping[str, Tensor], units: tuple[int, ...]) -> Iterator[PreTrainedModel]:
        """The model itself, for rows of several clients, whatever it is asked to do with them."""
        self.model.eval()  # the last training pass may have left attention's dropout on
        with (
            self.wave.through(parameters, units, columns=None, in_head=True),
            rotating(self.rotary),
        ):
            yield self.model

    def _keeps_all(self, pack: Pack) -> bool:
        """Whether attention picks none of the tokens of any of the pass's texts."""
        return self.dense is None or pack.longest <= self.dense

    @contextmanager
    def _as_fresh(self, pack: Pack) -> Iterator[None]:
        """Let no earlier pass matter to this one."""
        forget_lengths(self._rotaries)
        with self._block_sparse.frozen(not pack.packed and not self._keeps_all(pack)):
            yield

    def _places(self, pack: Pack) -> dict[str, Any]:
        """Where a wave's tokens stand in a pass of the trunk."""
        if pack.packed:
            return {"columns": 1}
        if not self._keeps_all(pack):
            return {"columns": pack.columns}
        tokens = pack.ids.numel()
        real = {"real": pack.real, "tokens": tokens, "real_units": pack.client_tokens}
        return {"columns": pack.columns, **real}

    def _behind(self, states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        assert self.anatomy is not None
        if self.anatomy.core is not self.anatomy.trunk:
            self.anatomy.trunk.eval()  # what stands before the core runs too, and nobody looks at it
        with answering(self.anatomy, states):
            return self.model(**inputs).logits

    def _inputs(self, module: nn.Module, parameters: Mapping[str, Tensor], pack: Pack) -> dict[str, Any]:
        takes = inspect.signature(module.forward).parameters
        inputs: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
        prompts = virtual_tokens(parameters)
        if prompts is None or pack.virtual is None:
            inputs["input_ids"] = pack.ids
        else:
            inputs["inputs_embeds"] = self._with_virtual(pack, prompts)
        if pack.types is not None and "token_type_ids" in takes:
            inputs["token_type_ids"] = pack.types
        if pack.mask is None:
            inputs["position_ids"] = pack.position_ids + self._offset
            # All are real: transformers would otherwise guess from the positions where sequences end.
            inputs["attention_mask"] = torch.ones_like(pack.ids)
        else:
            inputs["attention_mask"] = pack.mask.long()  # BigBird subtracts it from 1
        return inputs

    def _with_virtual(self, pack: Pack, prompts: Tensor) -> Tensor:
        embedded = self.model.get_input_embeddings()(pack.ids)
        where, source = pack.virtual  # type: ignore[misc]
        flat_prompts = prompts.reshape(-1, prompts.shape[-1]).to(embedded.dtype)
        flat = embedded.reshape(-1, embedded.shape[-1])
        return flat.index_copy(0, where, flat_prompts.index_select(0, source)).view_as(embedded)

    @contextmanager
    def _attention(self, pack: Pack, causal: bool, draws: Draws | None) -> Iterator[None]:
        """Packed attention for a packed pass, for the length of the block."""
        if not pack.packed:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(PackedPass(pack, causal, draws).running())
            stack.enter_context(replaced(self._own_attention))
            stack.enter_context(self.wave.dropping())
            for config, before in self._implementations:
                config._attn_implementation = NAME
                stack.callback(setattr, config, "_attn_implementation", before)
            yield
