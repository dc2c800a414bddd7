"""One problem, and the three parts that a data set comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Role = Literal["system", "user", "assistant"]


class Turn(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: Who speaks.
        text: What is said.
        learned: Of the assistant's: whether the model learns to say it.
    """

    role: Role
    text: str
    learned: bool = True


@dataclass(frozen=True)
class Example:
    """One problem with its solution.

    Attributes:
        question: What is asked, without the instruction.
        answer: What the model learns to write.
        final: What a right answer comes to: its final number alone, in plain form such as ``"19"``, or what
            it says in words; "" where it cannot be judged.
        label: A class of the example (sentiment, operation, problem type), for classification and for splits
            by label; "" where there is none.
        pair: The two texts that a sequence classifier reads; None where it reads the question.
        turns: The whole conversation, where it is one; the question and the answer are then the last of it,
            for people to read. It may have a system prompt of its own.
        whole: Whether the answer is a text that stands by itself, of which every token is learned; the
            question is then empty.
        rejected: Of a preference the whole conversation with the answer that was not preferred; `turns` is
            the one with the preferred answer, or () where they are texts, a question and two answers. What
            both begin with is not learned.
    """

    question: str
    answer: str
    final: str
    label: str = ""
    pair: tuple[str, str] | None = None
    turns: tuple[Turn, ...] = ()
    whole: bool = False
    rejected: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers to it, one of which people preferred (Rafailov et al. 2023, arXiv:2305.18290).

    Attributes:
        prompt: The conversation up to the answers: turns that end with the user's.
        chosen: The answer that was preferred: the assistant's turns, and what the user says between them.
        rejected: The other.
        label: To divide clients by; "" where there is none.
        texts: Whether they came as texts, a question and its answers; else as messages. Without a chat
            template these read differently.
    """

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    label: str = ""
    texts: bool = False

    def compared(self) -> Example:
        """The example that DPO learns from."""
        prompt = tuple(turn._replace(learned=False) for turn in self.prompt)
        asked = next((turn.text for turn in reversed(prompt) if turn.role == "user"), "")
        answer = next(turn.text for turn in reversed(self.chosen) if turn.role == "assistant")
        turns = () if self.texts else prompt + self.chosen
        return Example(asked, answer, "", self.label, turns=turns, rejected=prompt + self.rejected)


@dataclass(frozen=True)
class Splits:
    """The examples to train on, to validate on while training, and to judge the result by."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
