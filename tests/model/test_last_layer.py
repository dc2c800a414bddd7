"""The last layer works only where its output is read, and nobody can tell from the numbers."""

import pytest
import torch
from engine import clients_data, make_stacked, start_bank, steps_of
from peft import LoraConfig
from tiny import tiny_bert, tiny_bloom, tiny_distilbert, tiny_gpt2, tiny_llama

from fedloom.model.last_layer import ReadRows
from fedloom.model.packing import build_pack
from fedloom.model.wave import Wave

CAUSAL, CLASSES = "CAUSAL_LM", "SEQ_CLS"


def restricted(model):
    """The restricted modules, named from their layer on."""
    found = [name for name, module in model.model.named_modules() if isinstance(module, ReadRows)]
    layer = next(name for name in found[0].split(".") if name.isdigit())
    return {name.split(f".{layer}.", 1)[1] for name in found}


def stacked(build, task, targets):
    labels = None if task == CAUSAL else 3
    return make_stacked(build(num_labels=labels), LoraConfig(task_type=task, r=2, target_modules=targets))


def test_a_llama_layer_needs_all_tokens_for_keys_and_values_alone():
    model = stacked(tiny_llama, CAUSAL, ["q_proj", "v_proj"])
    assert restricted(model) == {"self_attn.q_proj.base", "self_attn.o_proj", "mlp"}


def test_a_bert_layer_too():
    model = stacked(tiny_bert, CLASSES, ["query"])
    assert restricted(model) == {
        "attention.self.query.base",
        "attention.output.dense",
        "intermediate",
        "output.dense",
    }


def test_adapters_inside_a_part_keep_every_token():
    model = stacked(tiny_llama, CAUSAL, ["up_proj"])
    names = restricted(model)
    assert "mlp" not in names
    assert {"mlp.gate_proj", "mlp.up_proj.base", "mlp.down_proj"} <= names


@pytest.mark.parametrize(
    ("build", "task", "targets"),
    [
        (tiny_llama, CAUSAL, ["q_proj", "v_proj", "down_proj"]),
        (tiny_bloom, CAUSAL, ["query_key_value"]),
        (tiny_gpt2, CAUSAL, ["c_attn"]),
        (tiny_bert, CLASSES, ["query", "value"]),
        (tiny_distilbert, CLASSES, ["q_lin", "v_lin"]),
    ],
)
def test_losses_and_gradients_are_those_of_the_whole_layer(build, task, targets, monkeypatch):
    model = stacked(build, task, targets)
    data = clients_data(steps_per_client=(1, 1))
    clients = [steps_of(client, steps, model.layout)[0] for client, steps in enumerate(data)]
    pack = build_pack(clients, model.layout)

    def outcome():
        leaves = {n: (t + 0.01).requires_grad_() for n, t in start_bank(model, 2).tensors.items()}
        losses = model.losses(leaves, pack)
        return losses.loss.detach(), *torch.autograd.grad(losses.loss.sum(), list(leaves.values()))

    narrow = outcome()
    monkeypatch.setattr(ReadRows, "forward", lambda self, x: self.base(x))
    for ours, whole in zip(narrow, outcome(), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)


def test_the_rows_that_are_read_are_computed_and_the_others_are_not():
    wave, seen = Wave(), []
    base = torch.nn.Linear(3, 2)
    base.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[-2]))
    narrow, x = ReadRows(base, wave), torch.randn(1, 5, 3)

    with wave.through({}, (5,), rows=torch.tensor([1, 4])):
        y = narrow(x)
    torch.testing.assert_close(y[0, [1, 4]], base(x)[0, [1, 4]])
    assert not y[0, [0, 2, 3]].any()
    torch.testing.assert_close(narrow(x), base(x))
    assert seen[0] == 2
