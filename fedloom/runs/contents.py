"""What the files of a run's folder must hold, so that whoever reads them need not look twice.

Files come from anywhere: from a disk that failed, an editor, another program, another version. Names that are
not known are left alone, since another version may have them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedloom.options.declare import options
from fedloom.options.fed import FedConfig
from fedloom.options.graph import DflConfig
from fedloom.options.parsing import RUN_CONFIG, RUN_RECORD
from fedloom.options.peer import PeerConfig
from fedloom.runs.reading import Damaged

Check = Callable[[Any], bool]
"""Whether a value is what it must be."""

OPTIONS_DIGEST = "options"
"""What the record in config.yaml calls the digest of `digest_of_options`."""
OPTIONS = {"fed": FedConfig, "dfl": DflConfig, "peer": PeerConfig}
MOST_LAYERS = 10_000


def is_number(value: object) -> bool:
    """Whether something is a number that can be drawn: finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_count(value: object) -> bool:
    """Whether something is a whole number, not negative, that a float holds exactly."""
    return type(value) is int and 0 <= value < 2**53


def is_text(value: object) -> bool:
    """Whether something is text."""
    return isinstance(value, str)


def each(check: Check) -> Check:
    """Whether something is a list of values of one kind."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def perhaps(check: Check) -> Check:
    """Whether something is of a kind, or null: JSON has no word for a number that is not finite."""
    # JSON's readers know NaN and Infinity all the same.
    return lambda value: (
        value is None or check(value) or (isinstance(value, float) and not math.isfinite(value))
    )


_NUMBER, _NUMBERS = perhaps(is_number), each(perhaps(is_number))
_LAYERS = each(lambda value: is_count(value) and value < MOST_LAYERS)
_COUNTS = each(is_count)

ROW: Mapping[str, Check] = {
    **dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), _NUMBER),
    **dict.fromkeys(("val_answer_accuracy", "consensus_error", "consensus_error_relative"), _NUMBER),
    **dict.fromkeys(("personal_val_loss", "personal_val_accuracy"), _NUMBER),
    **dict.fromkeys(("epsilon", "clip"), _NUMBER),
    **dict.fromkeys(("seconds", "eval_seconds", "wall_seconds"), _NUMBER),
    **dict.fromkeys(("bytes_up", "bytes_down", "tokens"), perhaps(is_count)),
    **dict.fromkeys(("peer_val_accuracy", "layer_scores"), _NUMBERS),
    "selected_layers": _LAYERS,
    "evaluated_peers": _COUNTS,
}
"""A row of metrics.jsonl, beside its round."""

SUMMARY: Mapping[str, Check] = {
    "rounds": is_count,
    "peak_memory_mib": is_number,
    "peak_gpu_memory_mib": is_number,
}
_CLIENTS: Mapping[str, Check] = {
    "examples": _COUNTS,
    "labels": lambda value: isinstance(value, dict) and all(map(_COUNTS, value.values())),
    "validation": _COUNTS,
    "server": is_count,
}
_VERDICTS: Mapping[str, Check] = {"task": is_text, "split": is_text, "examples": is_count}
SCORES: Mapping[str, Check] = {
    "accuracy": is_number,
    "low": is_number,
    "high": is_number,
    "without_number": is_count,
    "loss": is_number,
    "f1": is_number,
    "matthews": is_number,
    **dict.fromkeys(("logp_accuracy", "margin", "logp_margin"), is_number),
}
"""What `fedloom eval` may find of an adapter; see `fedloom.evaluation.verdict.Verdict`."""


def check_known(path: Path, content: Mapping[str, Any], known: Mapping[str, Check], where: str = "") -> None:
    """Make sure that the names that are known and there have values of their kind.

    Raises:
        Damaged: One has not.
    """
    for name, check in known.items():
        if name in content and not check(content[name]):
            raise Damaged(path, f"{where}{name} is {str(content[name])[:40]!r}")


def check_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make sure of rows of metrics: their values, their order, and lists of one length throughout.

    Raises:
        Damaged: Something is wrong; names the round.
    """
    lengths: dict[str, int] = {}
    before = -1
    for row in rows:
        if row["round"] <= before:
            raise Damaged(path, f"round {row['round']} stands there twice, or behind a later one")
        before = row["round"]
        check_known(path, row, ROW, f"round {before}: ")
        for name in ("peer_val_accuracy", "evaluated_peers", "layer_scores"):
            length = len(row.get(name) or ())
            if length and length != lengths.setdefault(name, length):
                raise Damaged(path, f"round {before}: {name} has {length} numbers, and others have another")
        if row.get("layer_scores") and "selected_layers" not in row:
            raise Damaged(path, f"round {before}: there are layer_scores and no selected_layers")
        if max(row.get("selected_layers") or [0]) >= lengths.get("layer_scores", MOST_LAYERS):
            raise Damaged(path, f"round {before}: a layer is selected that has no score")


def command_of(options: Mapping[str, Any]) -> str:
    """The command that has these options: `fed`, `dfl` or `peer`."""
    if "neighbors" in options:
        return "peer"
    return "dfl" if "model_checkpoint" in options else "fed"


def digest_of_options(content: Mapping[str, Any], command: str) -> str:
    """Digest of the options in config.yaml that a round depends on.

    Args:
        content: What the file holds.
        command: Whose options they are.
    """
    free = {option.name for option in options(OPTIONS[command]) if option.free} | {RUN_RECORD}
    kept = {name: value for name, value in content.items() if name not in free}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:32]


def check_options(path: Path, content: Mapping[str, Any], command: str) -> None:
    """Make sure of the options in config.yaml, and of what it says beside them.

    Raises:
        Damaged: A value breaks its rule, or is not the one that was written.
    """
    kinds = {option.name: option.allows for option in options(OPTIONS[command])}
    check_known(path, content, kinds)
    record = content.get(RUN_RECORD)
    if record is not None and not (
        isinstance(record, dict)
        and isinstance(record.get("versions", {}), dict)
        and all(map(is_text, record.get("versions", {})))
    ):
        raise Damaged(path, f"{RUN_RECORD} is no record of versions and device")
    if record is None:
        raise Damaged(path, f"its end is missing, with the record {RUN_RECORD}")
    if record.get(OPTIONS_DIGEST, digest := digest_of_options(content, command)) != digest:
        raise Damaged(
            path,
            "an option that rounds depend on has another value than when the run began",
            "put the value back, or take another --exp_name",
        )


def check_peers(folder: Path, content: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that a run has as many peers as its options say, or as many of them as it evaluates.

    Raises:
        Damaged: It has not.
    """
    evaluated = [row["evaluated_peers"] for row in rows if row.get("evaluated_peers")]
    found = {len(row["peer_val_accuracy"]) for row in rows if row.get("peer_val_accuracy")}
    peers = content.get("num_clients")
    if any(max(some) >= (peers or 0) for some in evaluated) or found - {
        len(evaluated[0]) if evaluated else peers
    }:
        raise Damaged(folder / RUN_CONFIG, f"num_clients is not {max(found)}, the peers of its metrics")


def check_clients(path: Path, content: Mapping[str, Any]) -> None:
    """Make sure of clients.json, where there is one.

    Raises:
        Damaged: Something is missing, or of another kind.
    """
    if not content:
        return
    check_known(path, content, _CLIENTS)
    if not (content.keys() >= _CLIENTS.keys() and content["examples"] and content["validation"]):
        raise Damaged(path, "it does not say who holds what")
    for label, counts in content["labels"].items():
        if len(counts) != len(content["examples"]):
            raise Damaged(path, f"there are not as many counts of the label {label[:40]!r} as clients")


def check_verdicts(path: Path, content: Mapping[str, Any]) -> None:
    """Make sure of eval.json, where there is one.

    Raises:
        Damaged: Something is missing, or of another kind.
    """
    if not content:
        return
    check_known(path, content, _VERDICTS)
    adapters = content.get("adapters")
    if not (
        content.keys() >= _VERDICTS.keys()
        and isinstance(adapters, list)
        and all(isinstance(scores, dict) and is_text(scores.get("name")) for scores in adapters)
        and all("accuracy" in scores for scores in adapters)
    ):
        raise Damaged(path, "a task, a split, or an adapter's name or accuracy is missing")
    for scores in adapters:
        check_known(path, scores, SCORES, f"{scores['name'][:40]}: ")
        if scores.keys() & SCORES.keys() != adapters[0].keys() & SCORES.keys() or (
            ("low" in scores) != ("high" in scores)
        ):
            raise Damaged(path, f"{scores['name'][:40]} has not the scores of the others")
