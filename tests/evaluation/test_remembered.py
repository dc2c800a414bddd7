"""The first validation of runs that begin alike: the same numbers, looked at once."""

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_llama

from fedloom.data.encode import Tokens
from fedloom.evaluation import remembered
from fedloom.evaluation.evaluate import validate_rows
from fedloom.model.bank import AdapterBank
from fedloom.model.stacked import StackedModel

SEQUENCES = [[Tokens([3, 4, 5, 60 + k, 70, 80], 4, -1) for k in range(3)]]


def stacked(alpha=8):
    return StackedModel(
        tiny_llama(vocab_size=320), LoraConfig(task_type="CAUSAL_LM", lora_alpha=alpha), seed=2
    )


@pytest.fixture(scope="module")
def model():
    return stacked()


@pytest.fixture
def looks(monkeypatch, tmp_path):
    """How often the model has been looked at, where what takes any time at all is kept."""
    seen = []

    def look(*given):
        seen.append(given)
        return validate_rows(*given)

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr(remembered, "WORTH_SECONDS", -1.0)
    monkeypatch.setattr(remembered, "validate_rows", look)
    return seen


def first(model, sequences=SEQUENCES, wave_tokens=64):
    return remembered.first_validation(model, AdapterBank.repeat(model.initial, 1), sequences, wave_tokens)


def test_a_second_run_has_the_numbers_of_the_first(looks, model):
    found = first(model)
    assert found == validate_rows(model, AdapterBank.repeat(model.initial, 1), SEQUENCES, 64)
    assert first(stacked()) == found and len(looks) == 1


def test_whatever_changes_the_numbers_is_looked_at_anew(looks):
    model = stacked()
    first(model)
    first(model, wave_tokens=32)  # another order of additions
    first(model, [[SEQUENCES[0][0]._replace(answer_start=3)]])
    first(stacked(alpha=16))
    with torch.no_grad():
        next(model.initial[name] for name in model.initial if ".lora_B." in name)[0, 0] = 1.0
    first(model)
    with torch.no_grad():
        model.model.get_input_embeddings().weight[3, 0] += 1e-6
    first(model)
    assert len(looks) == 6


INTEL = "processor : {n}\ncpu family\t: 6\nmodel\t\t: {model}\ncpu MHz\t\t: {mhz}\n\n"


def test_a_host_is_known_by_its_processors_not_by_its_name(looks, monkeypatch, tmp_path):
    """A container has another name, and another folder of the model, on every start."""
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(remembered, "CPUINFO", cpuinfo)
    model = stacked()

    def look(name, processors, folder="/models/llama"):
        monkeypatch.setattr("platform.node", lambda: name)
        cpuinfo.write_text(processors)
        model.model.config._name_or_path = folder
        first(model)

    look("one", INTEL.format(n=0, model=85, mhz=2100))
    look("two", INTEL.format(n=0, model=85, mhz=3000) + INTEL.format(n=1, model=85, mhz=1), "/mnt/llama")
    assert len(looks) == 1
    look("two", INTEL.format(n=0, model=143, mhz=2100))
    assert len(looks) == 2
    look("two", "")  # nothing is known but the name
    look("one", "")
    assert len(looks) == 4


def test_settings_of_the_libraries_and_the_code_count(looks, model, monkeypatch):
    first(model)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    first(model)
    monkeypatch.setattr(remembered, "_code", lambda model: ["another"])
    first(model)
    assert len(looks) == 3


def test_a_damaged_entry_is_looked_at_anew_and_few_are_kept(looks, model, monkeypatch, tmp_path):
    found = first(model)
    (entry,) = tmp_path.rglob("*.json")
    for damage in ("", "[{}]", "[[1.0]]", "[]", "\0"):
        entry.write_text(damage)
        assert first(model) == found
    assert len(looks) == 6
    monkeypatch.setattr(remembered, "MOST_KEPT", 2)
    for tokens in (32, 33, 34):
        first(model, wave_tokens=tokens)
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_no_cache_stops_nobody_and_what_is_quick_is_not_kept(looks, model, monkeypatch, tmp_path):
    (tmp_path / "fedloom").write_text("in the way")
    assert first(model) == first(model) and len(looks) == 2
    (tmp_path / "fedloom").unlink()
    monkeypatch.setattr(remembered, "WORTH_SECONDS", 1000.0)
    first(model)
    assert not list(tmp_path.rglob("*.json"))
