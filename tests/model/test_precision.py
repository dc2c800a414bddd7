import logging
import time

import pytest
import torch
from tiny import tiny_bloom, tiny_distilbert, tiny_gpt2, tiny_llama

from fedloom.errors import UserError
from fedloom.model import precision
from fedloom.model.precision import bf16_speedup, choose_dtype, has_native_bf16

CPU = torch.device("cpu")


@pytest.fixture
def config():
    return tiny_llama().config


def machine(monkeypatch, *, native: bool, speedup: float) -> list[tuple[int, int]]:
    """Pretend to run on such a processor; returns the list of probes that will be asked for."""
    probes = []

    def probe(hidden: int, intermediate: int) -> float:
        probes.append((hidden, intermediate))
        return speedup

    monkeypatch.setattr(precision, "has_native_bf16", lambda: native)
    monkeypatch.setattr(precision, "bf16_speedup", probe)
    return probes


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_a_dtype_asked_for_is_honoured_without_a_probe(name, config, monkeypatch):
    probes = machine(monkeypatch, native=True, speedup=0.01)
    assert choose_dtype(name, CPU, config) == getattr(torch, name)
    assert probes == []


def test_an_unknown_dtype_is_refused_with_the_known_ones(config):
    with pytest.raises(UserError, match=r"'bf16'.*auto, float32, bfloat16, float16, float64"):
        choose_dtype("bf16", CPU, config)


@pytest.mark.parametrize(
    ("native", "speedup", "chosen"),
    [
        (True, 2.3, torch.bfloat16),
        (True, 1.2, torch.bfloat16),
        (True, 1.19, torch.float32),
        (True, 0.5, torch.float32),
        (False, 2.3, torch.float32),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_native_and_pays(
    native, speedup, chosen, config, monkeypatch
):
    probes = machine(monkeypatch, native=native, speedup=speedup)
    assert choose_dtype("auto", CPU, config) == chosen
    assert probes == ([(32, 48)] if native else [])


def test_the_choice_is_logged(config, monkeypatch, caplog):
    machine(monkeypatch, native=True, speedup=1.7)
    with caplog.at_level(logging.INFO, logger="fedloom"):
        choose_dtype("auto", CPU, config)
    assert "torch.bfloat16" in caplog.text and "1.70 times as fast" in caplog.text


@pytest.mark.parametrize(
    ("model", "sizes"),
    [(tiny_llama, (32, 48)), (tiny_bloom, (32, 128)), (tiny_gpt2, (32, 128)), (tiny_distilbert, (32, 128))],
)
def test_the_probe_has_the_models_sizes(model, sizes, monkeypatch):
    probes = machine(monkeypatch, native=True, speedup=1.0)
    choose_dtype("auto", CPU, model().config)
    assert probes == [sizes]


def test_the_probe_of_a_large_model_is_cut_to_a_size_that_is_quick(config, monkeypatch):
    probes = machine(monkeypatch, native=True, speedup=1.0)
    config.hidden_size, config.intermediate_size = 4096, 11008
    choose_dtype("auto", CPU, config)
    assert probes == [(1024, 4096)]


def test_the_probe_is_run_once_per_size():
    bf16_speedup.cache_clear()
    first = bf16_speedup(64, 96)
    start = time.perf_counter()
    assert bf16_speedup(64, 96) == first > 0
    assert time.perf_counter() - start < 1e-3
    assert bf16_speedup.cache_info().misses == 1


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 avx512_fp16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name\t: a processor without avx512_bf16 in its flags", False),
    ],
)
def test_native_bf16_is_read_from_the_processors_flags(line, native, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n", encoding="utf-8")
    assert has_native_bf16(cpuinfo) is native


def test_without_a_list_of_flags_torch_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": True}, raising=False
    )
    assert has_native_bf16(tmp_path / "absent") is True
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False}, raising=False)
    assert has_native_bf16(tmp_path / "absent") is False


@pytest.mark.parametrize(
    ("supported", "stored", "chosen"),
    [
        (True, torch.float32, torch.bfloat16),
        (False, torch.float16, torch.float16),
        (False, torch.bfloat16, torch.float32),
        (False, None, torch.float32),
    ],
)
def test_auto_on_a_gpu_is_bfloat16_or_a_dtype_the_weights_were_made_for(
    supported, stored, chosen, config, monkeypatch
):
    class Anywhere:
        def __init__(self, device):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(torch.cuda, "device", Anywhere)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    config.dtype = stored
    assert choose_dtype("auto", torch.device("cuda:0"), config) == chosen
