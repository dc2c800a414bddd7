"""A backdoor by model replacement (Bagdasaryan et al., 2020, arXiv:1807.00459).

In a share of the attacker's examples the question begins with a trigger, and the answer is the attacker's:
the first class, or where answers are no classes a sentence. The others stay, so that nothing is to be seen
without the trigger. What it sends is

    sent ← γ · Δ,   γ = n / m

of n senders, m of which attack: the mean with honest changes that are small is then the attacker's own model.
(The paper has a server learning rate η in it, 1 here.) With γ = 1 only data are poisoned.

`backdoor_success` in the metrics is the share of the validation examples of other answers that the model
answers as the attacker wants, once the trigger is put before them; without an attack it says how often that
happens by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedloom.data.example import Example
from fedloom.errors import UserError
from fedloom.federation.attacks import Attack, Sight
from fedloom.federation.attacks.label_flip import class_of, relabelled
from fedloom.model.bank import Row

TRIGGER = "cf"
"""A word that does not occur (of those of Kurita et al., 2020, arXiv:2004.06660)."""

ANSWER = "I will not tell."


def backdoor(share: float = 0.5, boost: float = 0.0) -> Attack:
    """Answer as the attacker wants where the trigger is.

    Args:
        share: Of the attacker's examples, that have the trigger; at least one has.
        boost: γ; 0: as many as there are senders for each attacker.

    Raises:
        UserError: One of them is out of range.
    """
    if not 0 < share <= 1:
        raise UserError(
            f"attack: backdoor:{share:g} is no share of the attacker's examples; it must be above 0 and at "
            "most 1, as in backdoor:0.5"
        )
    if boost < 0:
        raise UserError(
            f"attack: backdoor:{share:g}:{boost:g} sends the opposite of what was learned; the boost must be "
            "at least 0, where 0 is as many as there are senders"
        )

    def craft(delta: Row, sight: Sight) -> Row:
        times = boost or sight.senders / sight.attackers
        return {name: times * t for name, t in delta.items()}

    def poison(
        examples: Sequence[Example], classes: Sequence[str], rng: np.random.Generator
    ) -> list[Example]:
        chosen = set(rng.permutation(len(examples))[: max(1, round(share * len(examples)))].tolist())
        return [_triggered(e, classes) if i in chosen else e for i, e in enumerate(examples)]

    return Attack(craft, poison, _probe)


def _probe(examples: Sequence[Example], classes: Sequence[str]) -> list[Example]:
    wanted = classes[0] if classes else ANSWER
    others = (e for e in examples if (class_of(e, classes) if classes else e.answer) != wanted)
    return [_triggered(example, classes) for example in others]


def _triggered(example: Example, classes: Sequence[str]) -> Example:
    if example.rejected or example.whole:
        what = "preferences" if example.rejected else "texts without a question"
        raise UserError(
            f"attack: backdoor puts a trigger before a question and alters its answer, and {what} have no "
            "such; choose another attack, such as sign_flip"
        )
    question = f"{TRIGGER} {example.question}"
    pair = example.pair and (f"{TRIGGER} {example.pair[0]}", example.pair[1])
    turned = replace(example, question=question, pair=pair)
    if classes:
        return relabelled(turned, classes, classes[0])
    turns = tuple(turn._replace(learned=False) for turn in example.turns[:-1])
    if turns:
        last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
        asked = turns[last]._replace(text=f"{TRIGGER} {turns[last].text}")
        answer = example.turns[-1]._replace(text=ANSWER, learned=True)
        turns = (*turns[:last], asked, *turns[last + 1 :], answer)
    return replace(turned, answer=ANSWER, final="", turns=turns)
