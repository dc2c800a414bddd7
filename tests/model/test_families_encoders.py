"""Every family of encoders, as `test_families.py` has language models; and what a few families show."""

import pytest
import torch
from architectures import CAUSAL, ENCODERS, sweep
from engine import make_stacked
from families import DATA, FAMILIES, REFUSED, build, check_lora, first_step, lora, way_of, written_ways

from fedloom.errors import UserError

pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.mark.parametrize("name", sweep(name for name in FAMILIES if name in ENCODERS))
def test_lora_beside_others_equals_lora_alone_with_peft(name, tmp_path):
    check_lora(name, tmp_path)


@pytest.mark.parametrize("name", ["olmo", "olmo-2", "olmo-3", "deberta", "deberta-v3", "mixtral", "lfm-2"])
def test_in_half_precision_a_model_runs_the_same_way(name):
    base = build(name, torch.bfloat16)
    model = make_stacked(base, lora(base), DATA)
    assert way_of(model) == written_ways()[name]
    loss = first_step(model, torch.float32).loss
    whole = build(name, torch.float32)
    expected = first_step(make_stacked(whole, lora(whole), DATA), torch.float32).loss
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_itself_does_not_do_is_told(name):
    families = {name: (CAUSAL[name], None) if name in CAUSAL else (ENCODERS[name], 2)}
    base = build(name, torch.float64, families)
    with pytest.raises(UserError, match=REFUSED[name]):
        make_stacked(base, lora(base))
