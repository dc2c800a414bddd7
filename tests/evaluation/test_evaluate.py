"""Validation and predictions against plain transformers and PEFT."""

import random

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig
from tiny import tiny_bert, tiny_llama

from fedloom.data.encode import Tokens
from fedloom.evaluation.evaluate import predict_rows, validate
from fedloom.model.bank import AdapterBank
from fedloom.model.layout import shared_prefix
from fedloom.model.stacked import StackedModel

ADAPTERS = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=4),
    "prompt-tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16
    ),
}


def sequences(count=9):
    rng = random.Random(3)
    made = []
    for _ in range(count):
        ids = [3, 4, 5] + [rng.randrange(6, 300) for _ in range(rng.randrange(4, 15))]
        made.append(Tokens(ids, len(ids) - 2, -1))
    return made


@pytest.fixture(params=ADAPTERS)
def stacked(request):
    model = StackedModel(tiny_llama(vocab_size=320), ADAPTERS[request.param](), seed=2)
    model.share_prefix(shared_prefix(sequences()))
    return model


def trained(row, seed=4):
    """Some other adapter: each number moved a little, so that LoRA's B is not zero."""
    generator = torch.Generator().manual_seed(seed)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in row.items()}


def with_peft(model, row, folder):
    model.save(row, folder)
    return PeftModel.from_pretrained(tiny_llama(vocab_size=320), folder).eval()


def test_validation_is_the_mean_over_answer_tokens(stacked, tmp_path):
    row = trained(stacked.initial)
    plain = with_peft(stacked, row, tmp_path)
    losses, right = [], []
    for s in sequences():
        with torch.no_grad():
            logits = plain(torch.tensor([s.ids])).logits[0, -len(s.ids) :]
        for place in range(s.answer_start, len(s.ids)):
            losses.append(F.cross_entropy(logits[place - 1], torch.tensor(s.ids[place])))
            right.append(int(logits[place - 1].argmax()) == s.ids[place])
    for wave_tokens in (1, 1000):
        result = validate(stacked, row, sequences(), wave_tokens)
        assert result.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
        assert result.accuracy == pytest.approx(sum(right) / len(right))


def texts(count):
    """What BERT reads first must differ, for the classes to differ."""
    return [Tokens(s.ids[3:], len(s.ids) - 3, 0) for s in sequences(count)]


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_predicted_classes_are_those_of_peft(build, tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=4)
    model = StackedModel(build(num_labels=3, vocab_size=320), config, seed=2)
    rows = [trained(model.initial, seed) for seed in (4, 5)]
    asked = texts(20)
    for wave_tokens in (1, 1000):
        got = predict_rows(model, AdapterBank.stack(rows), [asked, asked[:7]], wave_tokens)
        assert [len(own) for own in got] == [20, 7]
        for k, row in enumerate(rows):
            model.save(row, tmp_path / str(k))
            base = build(num_labels=3, vocab_size=320)
            plain = PeftModel.from_pretrained(base, tmp_path / str(k)).eval()
            with torch.no_grad():
                expected = [int(plain(torch.tensor([s.ids])).logits.argmax()) for s in asked]
            assert len(set(expected)) > 1
            assert got[k] == expected[: len(got[k])]


def test_without_an_adapter_the_base_predicts():
    asked = texts(12)
    base = tiny_bert(num_labels=3, vocab_size=320)
    with torch.no_grad():
        expected = [int(base(torch.tensor([s.ids])).logits.argmax()) for s in asked]
    model = StackedModel(tiny_bert(num_labels=3, vocab_size=320), None, seed=0)
    assert len(set(expected)) > 1
    assert predict_rows(model, AdapterBank({}), [asked], 1000) == [expected]
