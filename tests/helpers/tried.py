"""Runs of commands read the same tiny models again and again: one trial tells them all how each is run.

That depends on its architecture and the adapter, not on its weights; the trial is what `tests/model` tests.
"""

import json
from typing import Any

import pytest

from fedloom.model import stacked
from fedloom.model.last_layer import ReadRows
from fedloom.model.wave import replace_module

_choose_way, _read_only_labels = stacked.choose_way, stacked.read_only_labels
_WAYS: dict[str, Any] = {}
_READ: dict[str, list[str]] = {}


def try_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """During a test, remember what the trials of models that were read from a folder have come to."""
    latest = ""

    def choose_way(logits, plain, parameters, candidates, clients, model):
        nonlocal latest
        adapter = logits.__self__.config
        options = {**model.config.to_dict(), "adapter": adapter.to_dict() if adapter else {}}
        from_folder = bool(model.config._name_or_path)
        for part in (options, options["adapter"]):
            for name in ("_name_or_path", "base_model_name_or_path"):
                part.pop(name, None)
        known = [str(type(model)), str(model.dtype), str(model.device), str(candidates)]
        latest = json.dumps([known, options], sort_keys=True, default=_plain) if from_folder else ""
        if not latest or latest not in _WAYS:
            _WAYS[latest] = _choose_way(logits, plain, parameters, candidates, clients, model)
        return _WAYS[latest]

    def read_only_labels(layers, wave, run, draws):
        last = layers[-1]
        if not latest or latest not in _READ:
            _read_only_labels(layers, wave, run, draws)
            _READ[latest] = [name for name, module in last.named_modules() if isinstance(module, ReadRows)]
            return
        for name in _READ[latest]:
            replace_module(last, name, ReadRows(last.get_submodule(name), wave))

    monkeypatch.setattr(stacked, "choose_way", choose_way)
    monkeypatch.setattr(stacked, "read_only_labels", read_only_labels)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
