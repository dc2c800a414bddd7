"""Validation and answers against plain transformers and PEFT."""

import random

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig
from tiny import tiny_llama, tiny_tokenizer

from fedloom.data.encode import Tokens
from fedloom.model.layout import shared_prefix
from fedloom.model.stacked import StackedModel
from fedloom.observe.evaluate import answer, validate

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


def trained(row):
    """Some other adapter: each number moved a little, so that LoRA's B is not zero."""
    generator = torch.Generator().manual_seed(4)
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


def test_answers_are_those_of_generate_one_by_one(stacked, tmp_path):
    row, tokenizer = trained(stacked.initial), tiny_tokenizer()
    plain = with_peft(stacked, row, tmp_path)
    prompts = [s.ids[: s.answer_start] for s in sequences()]
    got = answer(
        stacked, row, tokenizer, prompts, ["1"] * len(prompts), end=2, max_new_tokens=8, batch_size=4
    )
    for prompt, text in zip(prompts, got.texts, strict=True):
        ids = torch.tensor([prompt])
        written = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )
        skipped = len(prompt) if written.shape[1] > 8 else 0
        assert text == tokenizer.decode(written[0, skipped:], skip_special_tokens=True)


def test_only_the_right_number_is_right(stacked):
    tokenizer = tiny_tokenizer()
    prompts = [s.ids[: s.answer_start] for s in sequences()]
    got = answer(stacked, stacked.initial, tokenizer, prompts, ["1"] * 9, end=2, max_new_tokens=6)
    assert len(got.texts) == len(got.right) == 9
    assert got.accuracy == sum(got.right) / 9
