"""What runs that follow each other in one process need not do anew: read and encode data, load the base."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedloom.data.stamps import Stamp
from fedloom.model.base import BaseModel, BeforeWeights, load_base
from fedloom.model.twin import twin, writes

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _Done:
    make: Callable[..., Any]
    given: tuple[Any, ...]
    result: Any
    asked_for: bool = True


@dataclass(frozen=True)
class _Loaded:
    wanted: tuple[Any, ...]
    base: BaseModel
    structure: PreTrainedModel
    writes: tuple[int, ...]


class Shared:
    """Results of the runs before, for those that ask for the same.

    A run makes each slow step of its set-up through this. It is decided by the step's own arguments, not by
    the run's options, so that an option which a step does not look at is no reason to do it again, and none
    that it does look at can be forgotten.

    Attributes:
        jobs: Processes that make runs on this machine at the same time.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = jobs
        self._done: defaultdict[int, list[_Done]] = defaultdict(list)
        self._files: Mapping[str, Stamp] = {}
        self._tokenizer: tuple[tuple[Any, ...], PreTrainedTokenizerBase] | None = None
        self._loaded: _Loaded | None = None

    def begin(self, files: Mapping[str, Stamp]) -> None:
        """A run's set-up begins: what the one before has not asked for is forgotten, also where it failed.

        Args:
            files: The data that the run reads, as they are now. Where some are no longer what they were for
                the run before, nothing is kept.
        """
        self.forget_the_rest()
        if any(files[path] != self._files[path] for path in files.keys() & self._files.keys()):
            self._done.clear()
        self._files = files
        for alike in self._done.values():
            for done in alike:
                done.asked_for = False

    def once(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`make` of these arguments, or what it gave a run before for equal ones.

        Args:
            make: Depends on its arguments and on the files of `begin`; nobody changes its result.
            *args: Its arguments.
            **kwargs: More of them.
        """
        given = (args, kwargs)
        alike = self._done[hash((make, *map(_hash, args)))]
        for done in alike:
            if done.make == make and done.given == given:
                done.asked_for = True
                return done.result
        result = make(*args, **kwargs)
        alike.append(_Done(make, given, result))
        return result

    def forget_the_rest(self) -> None:
        """Forget what this run has not asked for: it is set up."""
        kept = [(key, done) for key, alike in self._done.items() for done in alike if done.asked_for]
        self._done.clear()
        for key, done in kept:
            self._done[key].append(done)

    def base(
        self,
        name: str,
        files: tuple[str, ...],
        options: Mapping[str, Any],
        before_weights: BeforeWeights,
    ) -> BaseModel:
        """A base model of the caller's own, over weights that the runs before have read where it is the same.

        There is never a second one: the one that was there goes before the weights of another are read.

        Args:
            name: As `load_base` has it, like the next but one.
            files: Digests of the model's files, as they are now.
            options: Keywords for `load_base`.
            before_weights: Is called in any case.
        """
        wanted = (name, files, options)
        loaded = self._loaded
        if loaded is not None and loaded.wanted == wanted and loaded.writes == writes(loaded.base.model):
            before_weights(loaded.base.tokenizer, loaded.structure)
            return replace(loaded.base, model=twin(loaded.base.model))
        del loaded  # it keeps weights
        read = (name, files, options["token"])
        known = self._tokenizer[1] if self._tokenizer and self._tokenizer[0] == read else None
        structures: list[PreTrainedModel] = []

        def seen(tokenizer: PreTrainedTokenizerBase, structure: PreTrainedModel) -> None:
            self._tokenizer = (read, tokenizer)
            structures.append(structure)
            before_weights(tokenizer, structure)
            self._loaded = None  # two may be one too many

        base = load_base(name, **options, before_weights=seen, tokenizer=known)
        if options["quantize"] != "none" or options["trust_remote_code"]:  # it has state beside its numbers
            return base
        self._loaded = _Loaded(wanted, base, structures[0], writes(base.model))
        return replace(base, model=twin(base.model))


def _hash(value: object) -> int:
    """The same for equal values, and of long lists quickly; for most others another."""
    if isinstance(value, list):
        return hash((len(value), *(_hash(item) for item in (*value[:1], *value[-1:]))))
    try:
        return hash(value)
    except TypeError:  # it has what can be changed inside
        return 0
