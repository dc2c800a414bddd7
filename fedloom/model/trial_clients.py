"""Two clients for a trial: a few short texts each, and adapters that differ in every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch
from fedloom.model.lengths import summarised

Clients = list[list[Batch]]

_PREFIX = 2
_LENGTHS = ((13, 7), (11, 5))  # of each client's sequences: no two alike, so that nothing fits by chance


def trial_clients(model: PreTrainedModel, virtual: int) -> Clients:
    """Two clients with a batch of two short sequences each; all begin alike.

    Args:
        model: For its vocabulary and its longest sequence.
        virtual: Virtual tokens that will stand before each sequence.
    """
    config = model.config.get_text_config()
    special = {
        token
        for name in ("pad", "bos", "eos", "cls", "sep", "mask", "image", "audio", "video")
        for token in _as_list(getattr(config, f"{name}_token_id", None))
    }
    try:
        vocabulary = model.get_input_embeddings().weight.shape[0]
    except NotImplementedError:  # CANINE, which hashes characters
        vocabulary = getattr(config, "vocab_size", None) or 256
    # Spread over the vocabulary: the tokens of a family's own language are as likely as reserved ones.
    usable = [token for token in range(vocabulary) if token not in special] or [0]
    room = (getattr(config, "max_position_embeddings", None) or 64) - virtual
    more = summarised(model)
    ids = [usable[(7 * i + 3) % len(usable)] for i in range(64)]
    clients = []
    for k, lengths in enumerate(_LENGTHS):
        sequences = []
        for n in (max(_PREFIX + 2, min(n + more, room)) for n in lengths):
            own = ids[:_PREFIX] + ids[5 * n : 6 * n][: n - _PREFIX]
            own += [usable[(31 * i + n) % len(usable)] for i in range(n - len(own))]
            sequences.append(Tokens(own, n - 1 if n < 6 else n - 2, k % 2))
        clients.append([Batch(sequences, 1.0, (0, k, 0))])
    return clients


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def as_tried(together: int | None, clients: Clients) -> int | None:
    """``together`` of `Layout`, as far as a trial can tell: 0 where its own texts are longer."""
    tried = max(len(s.ids) for batches in clients for batch in batches for s in batch.sequences)
    return None if together is None else together if together >= tried else 0


def two_adapters(initial: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Two clients' adapters that differ from the first one, and from each other, in every number.

    Args:
        initial: The first adapter, ``{name: tensor[*shape]}``.
        device: Where they are to lie.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(t: Tensor) -> Tensor:
        apart = 0.1 * torch.randn(2, *t.shape, generator=generator, dtype=torch.float64)
        return (t.cpu() + apart.to(t.dtype)).to(device)

    return {name: drawn(t) for name, t in initial.items()}
