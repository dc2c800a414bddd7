"""What is wrong with a model's files, in words, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

_SHOWN = 3  # names in a message


_GATHER = "DeepSpeed ZeRO-3 leaves tensors of size 0: gather them (zero_to_fp32.py) and save them again."


def what_is_wrong(lacking: Sequence[str], wrong: Mapping[str, tuple[Any, Any]], every: int) -> str:
    """What the files lack, and what has another shape."""
    faults = []
    if lacking:
        faults.append(f"its files lack {len(lacking)} of {every} tensors ({some(lacking)})")
    if wrong:
        first = sorted(wrong)[0]
        found, wanted = wrong[first]
        faults.append(
            f"{len(wrong)} of {every} tensors have another shape than config.json says ({first} is "
            f"{list(found)}, not {list(wanted)})"
        )
    return ", and ".join(faults)


def advice(
    model: PreTrainedModel, lacking: set[str], wrong: Mapping[str, tuple[Any, Any]], unexpected: Iterable[str]
) -> str:
    """What to do about it."""
    prefix = _prefix(lacking, unexpected)
    if prefix is not None:
        return prefix
    if any(0 in found for found, _ in wrong.values()):
        return _GATHER
    head = model.get_output_embeddings()
    heads = {name for name, module in model.named_modules() if module is head}
    if lacking and not wrong and {tensor.rpartition(".")[0] for tensor in lacking} <= heads:
        return (
            "It is the language model's head: set tie_word_embeddings to true in config.json if it is the "
            "embedding, else fetch the file that holds it."
        )
    if wrong and not lacking:
        return "Fetch config.json and the weights again, both from one place."
    return (
        "Fetch the missing file of weights; if all are there, config.json (num_hidden_layers, model_type) is "
        "another model's."
    )


def _prefix(lacking: set[str], unexpected: Iterable[str]) -> str | None:
    """What to do where the files name the missing tensors with a prefix too many or too few."""
    more: Counter[str] = Counter()
    less: Counter[str] = Counter()
    by_end: dict[str, list[str]] = {}
    for tensor in lacking:
        by_end.setdefault(".".join(tensor.split(".")[-2:]), []).append(tensor)
    for there in unexpected:
        for tensor in by_end.get(".".join(there.split(".")[-2:]), []):
            if there.endswith(f".{tensor}"):
                more[there.removesuffix(tensor)] += 1
            elif tensor.endswith(f".{there}"):
                less[tensor.removesuffix(there)] += 1
    if more:
        ((prefix, count),) = more.most_common(1)
        return (
            f"The files hold {count} of them as {prefix}…: strip the prefix {prefix!r} from their names (a "
            "model that was compiled or wrapped must be unwrapped before it is saved)."
        )
    if less:
        ((prefix, count),) = less.most_common(1)
        return f"The files hold {count} of them without {prefix!r} in front: put that before their names."
    return None


def some(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(names[:_SHOWN]) + (", …" if names[_SHOWN:] else "")
