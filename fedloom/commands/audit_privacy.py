"""`fedloom audit-privacy`: what an attacker can tell of a private run, beside what was proven of it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from fedloom.errors import UserError, plain_console
from fedloom.evaluation.reference import with_references
from fedloom.federation.privacy.audit import LEVEL, audit
from fedloom.options.audit_privacy import AuditPrivacyConfig
from fedloom.process import place
from fedloom.runs.files import check_output, write_atomically
from fedloom.training.audit_clients import play_with_clients
from fedloom.training.audit_examples import play_with_examples
from fedloom.training.audit_rounds import Played, with_key
from fedloom.training.inversion import invert
from fedloom.training.private import with_noise
from fedloom.training.setup_fed import build


def run_audit_privacy(config: AuditPrivacyConfig) -> bool:
    """Play a run's rounds with canaries, and write and print what could be told of them.

    Args:
        config: The options.

    Returns:
        Whether what was found is within what was proven.

    Raises:
        UserError: A mistake of the user.
    """
    if place().size > 1:
        raise UserError("audit-privacy: it runs in one process; leave torchrun out")
    path = Path(config.output)
    check_output(path, "audit.json")
    run = with_noise(config.of_the_run)
    resolved, parts = build(run)
    (train,) = with_references(parts.model, [parts.data.train], parts.rules.wave_tokens)
    parts = with_key(replace(parts, data=replace(parts.data, train=train)))
    play = play_with_clients if run.privacy == "user" else play_with_examples
    played = play(parts, run.max_steps, config.canaries, lambda n: _tell(n, run.max_steps))
    found = {"privacy": run.privacy, **_findings(played)}
    found |= {"noise_multiplier": resolved.noise_multiplier, "clip": resolved.clip}
    # What took long is written and told first: whatever becomes of the rest.
    _write(path, found)
    _show(found)
    if config.inverted:
        inverted = invert(parts, played.server, config.inverted)
        found["inversion"] = None if inverted is None else [asdict(one) for one in inverted]
        _write(path, found)
        _show_inverted(found["inversion"])
    print(f"Written to {path}")
    return bool(found["holds"])


def _findings(played: Played) -> dict[str, Any]:
    found, proven = audit(played.scores, played.included, played.delta), played.epsilon
    return {
        "rounds": played.server.round,
        "delta": played.delta,
        "epsilon_proven": proven if math.isfinite(proven) else None,
        "epsilon_lower_bound": found.epsilon,
        "confidence": 1 - LEVEL,
        "canaries": found.canaries,
        "included": int(played.included.sum()),
        "guesses": found.guesses,
        "guesses_right": found.right,
        "holds": found.epsilon <= proven,
    }


def _tell(done: int, rounds: int) -> None:
    if sys.stderr.isatty():
        print(f"\rround {done}/{rounds}", end="\n" if done == rounds else "", file=sys.stderr, flush=True)


def _write(path: Path, found: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(found, indent=2) + "\n", private=True, then="start again")


def _show(found: dict[str, Any]) -> None:
    proven = found["epsilon_proven"]
    table = Table(
        "", found["privacy"] + " level", title=f"{found['rounds']} rounds, delta {found['delta']:g}"
    )
    table.add_row("epsilon, proven", "infinite" if proven is None else f"{proven:.4g}")
    table.add_row("epsilon, lower bound", f"{found['epsilon_lower_bound']:.4g}")
    table.add_row("confidence", f"{found['confidence']:.0%}")
    table.add_row("canaries", f"{found['canaries']} ({found['included']} in)")
    table.add_row("guesses right", f"{found['guesses_right']} of {found['guesses']}")
    plain_console().print(table)
    if not found["holds"]:
        print(
            f"What was found is above what was proven: with {found['confidence']:.0%} confidence this run "
            "does not keep its promise"
        )


def _show_inverted(cases: list[dict[str, Any]] | None) -> None:
    if cases is None:
        print("Tokens were not rebuilt: no LoRA factor that trains reads the embeddings")
    elif not cases:
        print("Tokens were not rebuilt: examples are pairs of answers, and the attack is on single texts")
    else:
        table = Table("what the attacker sees of a change", "examples", "tokens", "recovered")
        for one in cases:
            share = f"{one['recovered'] / one['tokens']:.0%}" if one["tokens"] else ""
            table.add_row(one["case"], f"{one['examples']}", f"{one['tokens']}", share)
        plain_console().print(table)
