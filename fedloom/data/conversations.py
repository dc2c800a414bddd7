"""Conversations as a model reads them, in pieces: what it learns to say, and what it only reads.

The pieces end to end are the text that the tokenizer's chat template makes of the whole conversation. Where
an answer begins and ends in it is found in one of three ways, each of which is checked:

1. The template says so itself, by ``{% generation %}`` (transformers' own marks).
2. The conversation is rendered with a mark in the place of each message. An answer begins where the prompt
   for it ends, and ends behind the token that closes the assistant's turn. With the messages in the places
   of the marks that must be what the template makes of them.
3. Of templates that change an answer (which take its thinking out, such as Qwen 3's): an answer is what
   stands between the header of the assistant's turn and the token that closes it; there must be as many as
   answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from fedloom.data.example import Turn
from fedloom.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEGIN, _END = "\ue0b0", "\ue0b1"  # private characters, which no template and no text has
_MARK = re.compile(f"{_BEGIN}(\\d+){_END}")
_GENERATION = re.compile(r"\{%(?P<left>-?)\s*(?P<end>end)?generation\s*(?P<right>-?)%\}")


class Piece(NamedTuple):
    """A stretch of a conversation's text.

    Attributes:
        text: As the model reads it.
        learned: Whether the model learns to write it.
    """

    text: str
    learned: bool


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Returns the token ids that are marks and no text, also those without a role (``bos``, ...)."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def plain(tokenizer: PreTrainedTokenizerBase, instruction: str, turns: Sequence[Turn]) -> list[Piece]:
    """A conversation in lines that say who speaks; each answer ends in the end-of-text token."""
    pieces = [Piece(f"{instruction}\n\n", False)] if instruction and turns[0].role != "system" else []
    for turn in turns:
        if turn.role == "assistant":
            pieces += [Piece("Assistant:", False), Piece(f" {turn.text}{tokenizer.eos_token}", turn.learned)]
            pieces.append(Piece("\n", False))
        else:
            pieces.append(Piece(f"User: {turn.text}\n" if turn.role == "user" else f"{turn.text}\n\n", False))
    return pieces


def llama_2(tokenizer: PreTrainedTokenizerBase, instruction: str, turns: Sequence[Turn]) -> list[Piece]:
    """A conversation in the form of Llama 2 chat (Touvron et al. 2023, arXiv:2307.09288).

    The space before an answer's end token, which Meta's own code has, is left out, as after a single answer.
    """
    system = turns[0].text if turns[0].role == "system" else instruction
    said, pieces = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else "", list[Piece]()
    for turn in turns:
        if turn.role == "user":
            # The tokenizer itself puts the first beginning-of-text token.
            again = tokenizer.bos_token or "" if pieces else ""
            pieces.append(Piece(f"{again}[INST] {said}{turn.text} [/INST]", False))
            said = ""
        elif turn.role == "system" and pieces:
            said = f"<<SYS>>\n{turn.text}\n<</SYS>>\n\n"
        elif turn.role == "assistant":
            pieces.append(Piece(f" {turn.text}{tokenizer.eos_token}", turn.learned))
    return pieces


class TemplateTalk:
    """Conversations in the form of a tokenizer's chat template.

    Args:
        apply: Renders messages, ``(role, text)``; see `fedloom.data.templates`.
        tokenizer: The model's tokenizer.
        end: The token that closes the assistant's turn, if one does.
        instruction: The system prompt of conversations that have none of their own; "" for none.
        way_out: What to do where the template fails.
    """

    def __init__(
        self,
        apply: Callable[..., str],
        tokenizer: PreTrainedTokenizerBase,
        end: int | None,
        instruction: str,
        way_out: str,
    ):
        self.apply, self.tokenizer, self.instruction, self.way_out = apply, tokenizer, instruction, way_out
        self.end = None if end is None else str(tokenizer.convert_ids_to_tokens(end))
        self.forms: dict[tuple[tuple[str, bool], ...], tuple[bool, bool, list[Piece] | None]] = {}

    @cached_property
    def marked(self) -> str | None:
        """The template with marks around what is generated; None where it does not say so."""
        template = self.tokenizer.get_chat_template()
        marked = _GENERATION.sub(_as_text, template)
        return None if marked == template else marked

    def pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        """Returns the pieces of a conversation.

        Raises:
            UserError: If the template fails for it, or where its answers stand cannot be found.
        """
        if turns[0].role != "system" and self.instruction:
            turns = (Turn("system", self.instruction), *turns)
        roles = tuple((turn.role, turn.learned) for turn in turns)
        if roles not in self.forms:
            self.forms[roles] = self._form(turns)
        with_system, parts, form = self.forms[roles]
        if not with_system:
            turns = _system_in_user(turns)
        whole = self._whole(turns, parts)
        if self.marked is not None:
            return self._by_generation(turns, parts, whole)
        if form is not None:
            said = [turn.text for turn in turns]
            pieces = [Piece(_MARK.sub(lambda m: said[int(m[1])], text), learned) for text, learned in form]
            if _text(pieces) == whole:
                return pieces if self.end is not None else self._closed(pieces)
        return self._by_header(turns, parts, whole)

    def _form(self, turns: Sequence[Turn]) -> tuple[bool, bool, list[Piece] | None]:
        """How the template takes such messages: with a system message, in parts; and where answers stand."""
        for with_system in (True, False):
            turns_shown = turns if with_system else _system_in_user(turns)
            for parts in (False, True):
                marks = [
                    turn._replace(text=f"{_BEGIN}{place}{_END}") for place, turn in enumerate(turns_shown)
                ]
                try:
                    whole = self._whole(marks, parts)
                except UserError:
                    continue
                found = [int(place) for place in _MARK.findall(whole)]
                if found == list(range(len(turns_shown))):
                    return with_system, parts, self._cut(marks, parts, whole)
                if found == [place for place, turn in enumerate(turns_shown) if turn.role != "system"]:
                    continue  # leaves the system message out without a word
        self._whole(turns, parts=False)  # where it fails, its error has what is said
        raise UserError(
            "the chat template of the model's tokenizer leaves out messages of a conversation of "
            f"{len(turns)} messages ({', '.join(turn.role for turn in turns[:6])}). {self.way_out}"
        )

    def _cut(self, marks: Sequence[Turn], parts: bool, whole: str) -> list[Piece]:
        """A rendered conversation of marks, cut where each answer that is learned begins and ends."""
        places = [match.span() for match in _MARK.finditer(whole)]
        borders: list[tuple[int, int]] = []
        for number, turn in enumerate(marks):
            if turn.role != "assistant" or not turn.learned:
                continue
            first, last = places[number]
            begin = self._begin(marks[:number], parts, whole, places[number - 1][1] if number else 0, first)
            after = whole[last : places[number + 1][0] if number + 1 < len(places) else len(whole)]
            closed = after.find(self.end) if self.end is not None else -1
            borders.append((begin, last + closed + len(self.end or "") if closed >= 0 else last))
        pieces, done = [], 0
        for begin, end in borders:
            pieces += [Piece(whole[done:begin], False), Piece(whole[begin:end], True)]
            done = end
        return [*pieces, Piece(whole[done:], False)]

    def _closed(self, pieces: list[Piece]) -> list[Piece]:
        """Of a template that closes no turn: the last answer ends in the end-of-text token."""
        last = max((place for place, piece in enumerate(pieces) if piece.learned), default=len(pieces) - 1)
        return [*pieces[:last], Piece(pieces[last].text + str(self.tokenizer.eos_token), True)]

    def _begin(self, before: Sequence[Turn], parts: bool, whole: str, earliest: int, answer: int) -> int:
        """Where an answer begins: behind the prompt for it, at the latest where its text does."""
        try:
            prompt = self._whole(before, parts, add_generation_prompt=True) if before else ""
            bare = self._whole(before, parts) if before else ""
        except UserError:  # some templates take no conversation that ends here
            return answer
        if before and whole.startswith(prompt) and earliest <= len(prompt) <= answer:
            # A template that has no prompt for an answer leaves the header to be written; not so here.
            return len(prompt) if prompt != bare or whole[len(prompt) : answer].isspace() else answer
        header = prompt[len(bare) :] if prompt.startswith(bare) else ""
        found = whole.rfind(header, earliest, answer) if header else -1
        return found + len(header) if found >= 0 else answer

    def _by_generation(self, turns: Sequence[Turn], parts: bool, whole: str) -> list[Piece]:
        marked = self._whole(turns, parts, template=self.marked)
        answers = [turn for turn in turns if turn.role == "assistant"]
        cut = re.split(f"[{_BEGIN}{_END}]", marked)
        if "".join(cut) != whole or len(cut) != 2 * len(answers) + 1:
            raise self._lost(turns)
        learned = [False, *(flag for turn in answers for flag in (turn.learned, False))]
        return [Piece(text, flag) for text, flag in zip(cut, learned, strict=True)]

    def _by_header(self, turns: Sequence[Turn], parts: bool, whole: str) -> list[Piece]:
        first = next(place for place, turn in enumerate(turns) if turn.role == "assistant")
        answers = [turn for turn in turns if turn.role == "assistant"]
        try:
            bare, prompt = (
                self._whole(turns[:first], parts, add_generation_prompt=add) for add in (False, True)
            )
        except UserError:
            raise self._lost(turns) from None
        header = prompt[len(bare) :] if prompt.startswith(bare) else ""
        cut = whole.split(header) if header.strip() else []
        if self.end is None or len(cut) != len(answers) + 1:
            raise self._lost(turns)
        pieces, before = [], cut[0] + header
        for number, (turn, rest) in enumerate(zip(answers, cut[1:], strict=True), start=1):
            answer, closed, after = rest.partition(self.end)
            if not closed:
                raise self._lost(turns)
            pieces += [Piece(before, False), Piece(answer + closed, turn.learned)]
            before = after + (header if number < len(answers) else "")
        return [*pieces, Piece(before, False)]

    def _whole(self, turns: Sequence[Turn], parts: bool, **options: object) -> str:
        try:
            talk = [(turn.role, turn.text) for turn in turns]
            return self.apply(talk, parts, **({"add_generation_prompt": False} | options))
        except Exception as error:  # the template is a program of the model's: it may raise anything
            cause = f"{str(error).strip().partition(chr(10))[0]} ({type(error).__name__})"
            roles = ", ".join(turn.role for turn in turns[:6]) + (", …" if len(turns) > 6 else "")
            raise UserError(
                f"the chat template of the model's tokenizer fails for a conversation of {roles}, which "
                f"begins {turns[0].text[:60]!r}: {cause}. {self.way_out}"
            ) from error

    def _lost(self, turns: Sequence[Turn]) -> UserError:
        return UserError(
            "the chat template of the model's tokenizer changes messages, so that where the answers stand "
            f"cannot be found in the conversation that begins {turns[0].text[:60]!r}; leave it out, put "
            "{% generation %} around the assistant's messages in the template, or choose --prompt_format "
            "plain."
        )


def _as_text(match: re.Match[str]) -> str:
    """A statement that marks what is generated, as an expression that prints a mark."""
    return f"{{{{{match['left']} '{_END if match['end'] else _BEGIN}' {match['right']}}}}}"


def _system_in_user(turns: Sequence[Turn]) -> Sequence[Turn]:
    """The conversation for templates without a system message: it then begins what the user says next."""
    made, system = list[Turn](), ""
    for turn in turns:
        if turn.role == "system":
            system += f"{turn.text}\n\n"
        else:
            before = system if turn.role == "user" else ""
            made.append(turn._replace(text=before + turn.text))
            system = system.removeprefix(before)
    return made


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
