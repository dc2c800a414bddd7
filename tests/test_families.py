"""Every family of transformers that fedloom is said to run: training stacked equals training alone with PEFT.

The table in `docs/models.md` says how each is run; a test here holds it to what is found, and
`python tests/test_families.py` writes it.
"""

import random
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from architectures import CAUSAL, ENCODERS
from engine import apart, make_stacked, start_bank, steps_of
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from test_gate import train_alone
from tiny import tiny_model
from transformers.pytorch_utils import Conv1D

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.config import UserError
from fedloom.data.encode import Tokens
from fedloom.model.adapters.prompts import PROMPT
from fedloom.model.adapters.supported import saved_name
from fedloom.model.layout import Batch, Head
from fedloom.model.packing import build_pack

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# What transformers' own code does not do: compute in float64, or read texts as short as these are.
REFUSED = {"xglm": "float64", "canine": "a few short sequences"}
FAMILIES = {name: (make, None) for name, make in CAUSAL.items() if name not in REFUSED}
FAMILIES |= {name: (make, 2) for name, make in ENCODERS.items() if name not in REFUSED}
# Their attention is no part of a list of layers, or the test adapts nothing in one.
WITHOUT_LAYERS = {"squeezebert", "xlm"}
# transformers' own code wants the ids of all tokens, and virtual ones have none.
WITHOUT_PROMPTS = ["gemma-4", "deepseek-v4", "qwen-4-exp", "longformer"]
TO_FLOAT = torch.Tensor.float
TARGETS = """q_proj v_proj; query value; query_proj value_proj; q_lin v_lin; query_key_value; qkv_proj; Wqkv;
    c_attn; q_head v_head; in_proj; kv_b_proj o_proj; q_b_proj kv_proj; q v; c_proj; dense"""


@contextmanager
def full_float64():
    """Many architectures round to float32 on the way (norms, rotations, softmax): at 1e-10 that is noise.

    A mode that sees every call of torch would do the same and take a third of the time.
    """

    def keep(method):
        def kept(x, *args, **kwargs):
            if x.dtype == torch.float64:
                if method is TO_FLOAT:
                    return x
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in kwargs.items()}
            return method(x, *args, **kwargs)

        return kept

    methods = [(torch.Tensor, name) for name in ("float", "to", "type", "softmax", "sum", "mean", "cumsum")]
    functions = [(torch, name) for name in ("softmax", "sum", "cumsum")]
    before = [(owner, name, getattr(owner, name)) for owner, name in methods + functions]
    for owner, name, method in before:
        setattr(owner, name, keep(method))
    try:
        yield
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def build(name, dtype, families=FAMILIES):
    make, labels = families[name]
    model = tiny_model(make(), labels).to(dtype)
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = 0
    if dtype == torch.float64:
        model.config._experts_implementation = "eager"  # torch's grouped product knows no float64
    return model


def lora(model):
    linear = ((n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D))
    names = {name.rpartition(".")[2] for name, _ in linear}
    found = next((t.split() for t in TARGETS.split(";") if names.issuperset(t.split())), "all-linear")
    task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
    # Both factors random: with B = 0, A would have no gradient.
    return LoraConfig(task_type=task, r=2, lora_alpha=4, target_modules=found, init_lora_weights=False)


def sequence(rng, length):
    ids = [3, 7, 9] + [rng.randrange(10, 300) for _ in range(length - 3)]
    return Tokens(ids, length - 2, rng.randrange(2))


RNG = random.Random(1)
# A batch for each of two clients: one of unequal lengths, in the other all alike.
SHORT = [[sequence(RNG, n) for n in lengths] for lengths in ([9, 21, 5], [12, 12])]
# The first reaches beyond every length at which an architecture begins to do something else.
BATCHES = [[sequence(RNG, 34), sequence(RNG, 70), SHORT[0][2]], SHORT[1]]
DATA = [[[batch]] for batch in BATCHES]


def first_step(model, dtype, clients=(0, 1)):
    """The clients' adapters after one step of SGD from a start at which no part of them is 0."""
    work = [steps_of(k, DATA[k], model.layout) for k in clients]
    return train_locally(model, start_bank(model, len(clients), dtype), work, LocalRules(sgd(0.05)))


def logits_alone(plain, tokens, virtual=0):
    ids = torch.tensor([tokens.ids])
    logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return logits if plain.config.num_labels == 2 and logits.dim() == 1 else logits[virtual:]


@torch.no_grad()
def loss_alone(plain, tokens, virtual=0):
    """What an ordinary model says of a sequence."""
    logits = logits_alone(plain, tokens, virtual)
    if logits.dim() == 1:
        return F.cross_entropy(logits[None], torch.tensor([tokens.label]))
    return F.cross_entropy(
        logits[tokens.answer_start - 1 : -1], torch.tensor(tokens.ids[tokens.answer_start :])
    )


def losses(model, parameters, clients):
    """What the stacked model says of one sequence of each client."""
    labels = 1 if model.layout.classify else 2
    with torch.no_grad():
        return model.losses(
            parameters, build_pack([[Batch([tokens], 1 / labels)] for tokens in clients], model.layout)
        ).loss


@pytest.fixture(autouse=True, scope="module")
def without_shape_checks():
    """They take half of the time here, and see other tests' shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_beside_others_equals_lora_alone_with_peft(name, tmp_path):
    with full_float64():
        base = build(name, torch.float64)
        config = lora(base)
        model = make_stacked(base, config, DATA)
        assert way_of(model) == written_ways()[name]
        assert model.adapted or name in WITHOUT_LAYERS, "gradient priority finds no layers to score"
        together = first_step(model, torch.float64)
        by_peft, before, loss = train_alone(base, config, DATA[0], lambda p: torch.optim.SGD(p, 0.05))
        assert float(together.loss[0]) == pytest.approx(loss[0], rel=1e-10)
        assert apart(together.bank.row(0), by_peft) <= 1e-10 and apart(by_peft, before) > 1e-6

        rows = {n: t[1:] for n, t in together.bank.tensors.items()}
        alone = losses(model, rows, [SHORT[1][0]])
        for other in (SHORT[0][1], BATCHES[0][1]):
            beside = losses(model, together.bank.tensors, [other, SHORT[1][0]])
            assert float(beside[1]) == pytest.approx(float(alone[0]), rel=1e-10)
        model.save(together.bank.row(1), tmp_path)
        loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
        # PEFT saves and loads float32.
        assert float(alone[0]) == pytest.approx(float(loss_alone(loaded, SHORT[1][0])), rel=1e-5)
    model.model.float()
    in_float32 = first_step(model, torch.float32)
    assert apart(in_float32.bank.row(0), together.bank.row(0)) <= 1e-5


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITHOUT_PROMPTS])
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
    with pytest.raises(UserError, match="fails on a few short sequences"):
        make_stacked(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, **sizes))


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


def way_of(model):
    if model.layout.together == 0:
        return "batch by batch"
    how = "packed" if model.layout.packed else "padded"
    return how if model.layout.head is Head.LABELS or model.layout.classify else f"{how}, whole"


def written_ways():
    """How the page says that each family runs."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[2] for row in rows if len(row) == 3}


def write_page():
    begin, end = "<!-- families -->", "<!-- /families -->"
    table = ["| family | kind | runs |", "| --- | --- | --- |"]
    for name, (_, labels) in FAMILIES.items():
        with full_float64():
            base = build(name, torch.float64)
            way = way_of(make_stacked(base, lora(base)))
        table.append(f"| {name} | {'language model' if labels is None else 'encoder'} | {way} |")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    PAGE.write_text("\n".join([before + begin, *table, end + after]), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_page()
