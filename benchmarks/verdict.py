"""What a run's times come to: medians, ratios within turns, and whether all computed the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Rounding in bfloat16 is a matter of percents; a gradient that gets lost on its way is not.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}
MEMORY_LIMIT = 1.2
LOOPS = ("padded", "dynamic", "fedloom-loop")

Runs = dict[tuple[str, str], list[Any]]
"""``(contender, dtype) -> what was measured, turn by turn``."""


class Disagreement(Exception):
    """The contenders did not compute the same, or memory grew: the numbers are not to be shown."""


def report(facts: dict[str, Any], runs: Runs, rates: dict[str, float]) -> dict[str, Any]:
    """The result, from what was measured."""
    padded = next((key for key in runs if key[0] == "padded"), None)
    rows = []
    for (name, dtype), taken in runs.items():
        seconds = [one.seconds for one in taken]
        median = statistics.median(seconds)
        rows.append(
            {
                "name": name,
                "dtype": dtype,
                "seconds": seconds,
                "median_seconds": median,
                "tokens": taken[0].tokens,
                "useful_tokens_per_second": facts["useful_tokens"] / median,
                "gemm_share": facts["needed_flops"] / median / rates[dtype],
                "times_padded": times_as_fast(runs.get(padded) if padded else None, taken),
                "times_central": times_as_fast(runs.get(("central", dtype)), taken),
                "losses": taken[0].losses,
                "moved": taken[0].moved,
                "peak_bytes": taken[0].peak_bytes,
            }
        )
    data = (
        "sequences",
        "useful_tokens",
        "longest",
        "labels",
        "shared_prefix",
        "dropped",
        "linear_parameters",
    )
    return {
        "kind": "round",
        "auto": facts["auto"],
        "data": {key: facts[key] for key in (*data, "needed_flops")},
        "gemm_flops": rates,
        "contenders": rows,
        "agreement": agreement(rows),
        "machine": facts["machine"],
        "versions": facts["versions"],
    }


def times_as_fast(reference: list[Any] | None, taken: list[Any]) -> float | None:
    """The median over turns of how many times as fast as the reference a contender was."""
    if not reference:
        return None
    # The padded loop may have run in fewer turns; strict=False keeps the turns that both have.
    return statistics.median(r.seconds / t.seconds for r, t in zip(reference, taken, strict=False))


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Per dtype: the largest relative difference of fedloom to a loop, over clients and loops."""
    found = {}
    for ours in (row for row in rows if row["name"] == "fedloom"):
        loops = [row for row in rows if row["name"] in LOOPS and row["dtype"] == ours["dtype"]]
        if loops:
            found[ours["dtype"]] = {
                what: _largest(
                    [
                        abs(a - b) / abs(b)
                        for loop in loops
                        for a, b in zip(ours[what], loop[what], strict=True)
                    ]
                )
                for what in ("losses", "moved")
            }
    return found


def _largest(differences: Sequence[float]) -> float:
    """The largest; nan where one is nan, which `max` would overlook."""
    return max(differences) if not any(map(math.isnan, differences)) else math.nan


def check(result: Mapping[str, Any]) -> None:
    """Refuse times of contenders that did not compute the same.

    Raises:
        Disagreement: losses or steps are further apart than `TOLERANCES` allow, or are not numbers.
    """
    for dtype, differences in result["agreement"].items():
        allowed = TOLERANCES[dtype]
        for what, apart in differences.items():
            if not apart <= allowed:
                found = {row["name"]: row[what] for row in result["contenders"] if row["dtype"] == dtype}
                raise Disagreement(
                    f"{what} per client differ by {apart:.2g} in {dtype}, more than {allowed}: {found}"
                )


def check_memory(result: Mapping[str, Any]) -> None:
    """Refuse memory that grows with the number of clients.

    Raises:
        Disagreement: many clients take `MEMORY_LIMIT` times the memory of few, or more.
    """
    for name in ("ratio", "training_ratio"):
        if result[name] is not None and not result[name] < MEMORY_LIMIT:
            raise Disagreement(
                f"{name} of peak memory is {result[name]:.2f}, allowed is less than {MEMORY_LIMIT}"
            )
