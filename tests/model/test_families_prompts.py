"""Every family with virtual tokens: beside another client it gives what PEFT gives alone, in float32."""

import pytest
import torch
from architectures import sweep
from engine import make_stacked
from families import FAMILIES, SHORT, WITHOUT_PROMPTS, build, loss_alone, losses
from peft import PromptTuningConfig, get_peft_model

from fedloom.errors import UserError
from fedloom.model.adapters.prompts import PROMPT
from fedloom.model.adapters.supported import saved_name

pytestmark = pytest.mark.usefixtures("without_shape_checks")


# Of a family's variants those whose embeddings differ.
NAMES = [name for name in FAMILIES if "," not in name or name.endswith(("multimodal", "projected"))]


@pytest.mark.parametrize("name", sweep(name for name in NAMES if name not in WITHOUT_PROMPTS))
def test_float32_and_prompts_give_what_the_plain_model_gives(name):
    base = build(name, torch.float32)
    task = "CAUSAL_LM" if base.can_generate() else "SEQ_CLS"
    sizes = {
        "token_dim": base.get_input_embeddings().weight.shape[1],
        "num_layers": 2,
        "num_attention_heads": 4,
    }
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=3, **sizes)
    plain = get_peft_model(build(name, torch.float32), config).eval()
    model = make_stacked(base, config)
    own = {saved_name(n, config): p for n, p in plain.named_parameters() if p.requires_grad}
    own[PROMPT].data = 0.5 * torch.randn(own[PROMPT].shape, generator=torch.Generator().manual_seed(0))
    other = torch.zeros_like(own[PROMPT])
    parameters = {n: torch.stack([p, p]).detach() for n, p in own.items()}
    parameters[PROMPT] = torch.stack([other, own[PROMPT]]).detach()
    found = losses(model, parameters, [SHORT[0][1], SHORT[1][1]])
    assert float(found[1]) == pytest.approx(float(loss_alone(plain, SHORT[1][1], 3)), rel=1e-4)


@pytest.mark.parametrize("name", WITHOUT_PROMPTS)
def test_a_model_that_takes_no_prompts_says_so(name):
    base = build(name, torch.float32)
    sizes = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
    with pytest.raises(UserError, match=r"no ids, as virtual tokens do.*choose --peft lora"):
        make_stacked(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, **sizes))
