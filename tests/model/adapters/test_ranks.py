"""Clients of unequal LoRA rank in one bank: each is what PEFT makes of its own rank alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from engine import apart, clients_data, make_stacked, moved, start_bank, steps_of
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny import tiny_bloom, tiny_gpt2, tiny_llama

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import adam, sgd
from fedloom.errors import UserError
from fedloom.evaluation.evaluate import validate_rows
from fedloom.evaluation.generate import generate
from fedloom.model.adapters.ranks import padded, rank_factor, truncated, within_ranks
from fedloom.model.adapters.supported import saved_name
from fedloom.model.bank import AdapterBank, bytes_of
from fedloom.model.packing import build_pack

RANKS, LARGEST = (2, 1, 4), 4
DATA = clients_data((4, 2, 3))  # clients of unequal numbers of steps, whose batches are of unequal sizes
BASES = {
    "llama": (tiny_llama, ["q_proj", "v_proj", "down_proj"]),
    "bloom": (tiny_bloom, ["query_key_value"]),  # a fused projection
    "gpt2": (tiny_gpt2, ["c_attn"]),  # Conv1D
    "classifier": (lambda: tiny_llama(num_labels=3), ["q_proj", "v_proj"]),  # and a head that trains whole
}
OPTIMISERS = {
    "sgd": (lambda: sgd(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "adam": (
        lambda: adam(0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01),
    ),
}


def lora(kind, rank=LARGEST, **options):
    return LoraConfig(
        task_type="SEQ_CLS" if kind == "classifier" else "CAUSAL_LM",
        r=rank,
        lora_alpha=6,
        target_modules=BASES[kind][1],
        fan_in_fan_out=kind == "gpt2",
        **options,
    )


def base_of(kind, dtype=torch.float64):
    return BASES[kind][0]().to(dtype)


def start_of(model, ranks, dtype):
    """Everybody's first adapter: of A the first rows; None: all of it."""
    bank = start_bank(model, len(DATA), dtype)
    return bank if ranks is None else AdapterBank(within_ranks(bank.tensors, ranks))


def trained_together(model, ranks, optimiser, frozen=(), **rules):
    """All clients in shared passes; parameters whose names have ``frozen`` in them are shared and stay."""
    dtype = model.model.dtype
    frozen = {n: t.to(dtype) for n, t in model.initial.items() if any(f in n for f in frozen)}
    start = start_of(model, ranks, dtype)
    bank = AdapterBank({name: t for name, t in start.tensors.items() if name not in frozen})
    work = [steps_of(k, client, model.layout) for k, client in enumerate(DATA)]
    return train_locally(model, bank, work, LocalRules(optimiser, **rules), frozen=frozen, ranks=ranks).bank


def by_hand(row, rank):
    """An adapter's first rows of A and columns of B, said without the functions that are on trial."""
    return {n: t[:rank] if "lora_A" in n else t[:, :rank] if "lora_B" in n else t for n, t in row.items()}


def trained_alone(base, kind, rank, initial, steps, make_optimiser, frozen=()):
    """One client with HF PEFT and torch.optim; its adapter is of its own rank."""
    config = lora(kind, rank)
    model = get_peft_model(copy.deepcopy(base), config).to(base.dtype).eval()
    named = {saved_name(n, config): p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, t in by_hand(initial, rank).items():
            named[name].copy_(t)
    trains = [p for name, p in named.items() if not any(f in name for f in frozen)]
    optimiser = make_optimiser(trains)
    for batches in steps:
        optimiser.zero_grad()
        mean_loss(model, batches).backward()
        optimiser.step()
    return {name: p.detach() for name, p in named.items() if not any(f in name for f in frozen)}


def mean_loss(model, batches):
    """The mean over all labels of a step's batches, one sequence at a time."""
    losses = []
    for s in (s for batch in batches for s in batch):
        ids = torch.tensor([s.ids])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        if logits.dim() == 1:
            losses.append(F.cross_entropy(logits[None], torch.tensor([s.label]))[None])
        else:
            losses.append(
                F.cross_entropy(logits[s.answer_start - 1 : -1], ids[0, s.answer_start :], reduction="none")
            )
    return torch.cat(losses).mean()


def assert_empty_beyond(bank, ranks):
    for name, t in bank.tensors.items():
        for k, rank in enumerate(ranks):
            beyond = t[k][rank:] if "lora_A" in name else t[k][:, rank:] if "lora_B" in name else t[k][:0]
            assert beyond.count_nonzero() == 0, f"{name} of client {k}"


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(
    "kind, dtype, tolerance",
    [*((kind, torch.float64, 1e-10) for kind in BASES), ("llama", torch.float32, 1e-5)],
)
def test_training_equals_peft_of_each_rank_alone(kind, optimiser, dtype, tolerance):
    base, (ours, theirs) = base_of(kind, dtype), OPTIMISERS[optimiser]
    model = make_stacked(base, lora(kind), DATA)
    bank = trained_together(model, RANKS, ours())
    assert_empty_beyond(bank, RANKS)
    for k, (rank, steps) in enumerate(zip(RANKS, DATA, strict=True)):
        alone = trained_alone(base, kind, rank, model.initial, steps, theirs)
        assert moved(alone, by_hand(model.initial, rank))
        assert apart(truncated(bank.row(k), rank), alone) <= tolerance


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("frozen", [["lora_A"], ["lora_B"], ["layers.0."]], ids=["A", "B", "a layer"])
def test_what_nobody_trains_is_cut_to_each_clients_rank_too(frozen):
    """It is one full row for all clients, also for those who hold less of it."""
    base = base_of("llama")
    model = make_stacked(base, lora("llama"), DATA)
    generator = torch.Generator().manual_seed(3)
    for t in model.initial.values():  # an adapter that has trained: B is not zero
        t += 0.1 * torch.randn(t.shape, generator=generator)
    bank = trained_together(model, RANKS, sgd(0.05), frozen=frozen)
    assert_empty_beyond(bank, RANKS)
    for k, (rank, steps) in enumerate(zip(RANKS, DATA, strict=True)):
        alone = trained_alone(
            base, "llama", rank, model.initial, steps, lambda p: torch.optim.SGD(p, 0.05), frozen
        )
        assert moved(alone, {n: by_hand(model.initial, rank)[n] for n in alone})
        assert apart(truncated(bank.row(k), rank), alone) <= 1e-10


@pytest.mark.parametrize("wave_tokens", [1, 60])
def test_the_size_of_a_pass_changes_nothing(wave_tokens):
    model = make_stacked(base_of("llama"), lora("llama"), DATA)
    at_once = trained_together(model, RANKS, sgd(0.05))
    in_pieces = trained_together(model, RANKS, sgd(0.05), wave_tokens=wave_tokens)
    for k in range(len(RANKS)):
        assert apart(in_pieces.row(k), at_once.row(k)) <= 1e-12


@pytest.mark.parametrize("frozen", [[], ["layers.0."]], ids=["all trains", "a layer is shared"])
def test_equal_ranks_are_no_ranks_to_the_bit(frozen):
    model = make_stacked(base_of("llama", torch.float32), lora("llama"), DATA)
    plain = trained_together(model, None, adam(0.01), frozen=frozen)
    equal = trained_together(model, [LARGEST] * len(DATA), adam(0.01), frozen=frozen)
    assert all(torch.equal(t, equal.tensors[name]) for name, t in plain.tensors.items())
    assert model.at_ranks(equal.tensors, [LARGEST] * len(DATA)) is equal.tensors, "nor do they cost anything"


@pytest.fixture(scope="module")
def stacked():
    """A model, and a bank of three clients who have trained."""
    base = base_of("llama", torch.float32)
    model = make_stacked(base, lora("llama"), DATA)
    return base, model, trained_together(model, RANKS, sgd(0.5))


def saved(base, model, row, rank, folder):
    model.save(row, folder, rank=rank)
    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 10}}],
    ids=["alpha / r", "rsLoRA", "alpha_pattern"],
)
def test_a_saved_client_is_an_adapter_of_its_rank_to_peft(options, tmp_path):
    base = base_of("classifier", torch.float32)
    model = make_stacked(base, lora("classifier", **options), DATA)
    bank = trained_together(model, RANKS, sgd(0.5))
    for k, rank in enumerate(RANKS):
        loaded = saved(base, model, bank.row(k), rank, tmp_path / str(k))
        assert loaded.peft_config["default"].r == rank
        for adapted in model.adapted[0]:
            theirs = loaded.get_submodule(adapted.name).scaling["default"]
            assert adapted.scale * rank_factor(model.config, rank) == pytest.approx(theirs)
        step = steps_of(0, DATA[1], model.layout)[:1]
        one = {name: t[k : k + 1] for name, t in bank.tensors.items()}
        with torch.no_grad():
            ours = model.losses(model.at_ranks(one, [rank]), build_pack(step, model.layout)).loss
            theirs = mean_loss(loaded, DATA[1][0])
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_validation_and_generation_run_each_adapter_at_its_rank(stacked, tmp_path):
    base, model, bank = stacked
    judged = [[s for batch in client[0] for s in batch] for client in DATA]
    found = validate_rows(model, bank, judged, 4096, ranks=RANKS)
    prompts = [[s.ids[: s.answer_start] for s in own] for own in judged]
    options = {"ends": {2}, "max_new_tokens": 6, "batch_size": 2}
    written = generate(model, bank, prompts, ranks=RANKS, **options)
    assert written != generate(model, bank, prompts, **options), "the scale makes no difference to these"
    for k, rank in enumerate(RANKS):
        plain = saved(base, model, bank.row(k), rank, tmp_path / str(k))
        with torch.no_grad():
            assert found[k].loss == pytest.approx(float(mean_loss(plain, [judged[k]])), rel=1e-5)
        for prompt, answer in zip(prompts[k], written[k], strict=True):
            ids = torch.tensor([prompt])
            alone = plain.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            assert answer == [token for token in alone if token != 2]


def test_truncated_rows_are_smaller_and_come_back(stacked):
    *_, bank = stacked
    for k, rank in enumerate(RANKS):
        row = bank.row(k)
        small = truncated(row, rank)
        assert bytes_of(small) == bytes_of(row) * rank // LARGEST
        assert all(
            t.untyped_storage().nbytes() == t.numel() * 4 and t.is_contiguous() for t in small.values()
        )
        back = padded(small, LARGEST)
        assert all(torch.equal(t, back[name]) for name, t in row.items())
    with pytest.raises(ValueError, match="has rank 4, more than the bank's 2"):
        padded(bank.row(2), 2)


def test_a_head_that_trains_whole_has_no_rank():
    model = make_stacked(base_of("classifier"), lora("classifier"))
    assert any("score" in name for name in model.initial)
    for cut in (truncated(model.initial, 1), padded(model.initial, 8)):
        assert all(cut[name] is t for name, t in model.initial.items() if "lora_" not in name)
    bank = AdapterBank.repeat(model.initial, 2)
    within = within_ranks(bank.tensors, [1, 3])
    assert all(within[name] is t for name, t in bank.tensors.items() if "lora_" not in name)


def test_what_mixing_puts_beyond_a_rank_is_out_of_its_clients_sight():
    """A neighbour of larger rank fills what lies beyond: it is not seen, and gets no gradient."""
    model = make_stacked(base_of("llama"), lora("llama"), DATA)
    full = AdapterBank.repeat({n: t.double() + 0.1 for n, t in model.initial.items()}, 3)
    step = build_pack([steps_of(k, client, model.layout)[0] for k, client in enumerate(DATA)], model.layout)
    losses = []
    for bank in (full, AdapterBank(within_ranks(full.tensors, RANKS))):
        leaves = {name: t.requires_grad_() for name, t in bank.tensors.items()}
        out = model.losses(model.at_ranks(leaves, RANKS), step)
        gradients = dict(zip(leaves, torch.autograd.grad(out.loss.sum(), list(leaves.values())), strict=True))
        assert_empty_beyond(AdapterBank(gradients), RANKS)
        losses.append(out.loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "config, rank, message",
    [
        (lora("llama"), 5, "5 is no rank of a client; must be from 1 to the adapter's own, 4"),
        (lora("llama"), 0, "0 is no rank of a client"),
        (lora("llama", rank_pattern={"q_proj": 2}), 1, "rank_pattern {'q_proj': 2}"),
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            1,
            "the adapter is PROMPT_TUNING; leave it out",
        ),
    ],
    ids=["too large", "too small", "rank_pattern", "no LoRA"],
)
def test_ranks_that_cannot_be_are_refused(config, rank, message, tmp_path):
    model = make_stacked(tiny_llama(), config)
    bank = AdapterBank.repeat(model.initial, 1)
    with pytest.raises(UserError) as in_a_pass:
        model.at_ranks(bank.tensors, [rank])
    with pytest.raises(UserError) as when_saved:
        model.save(bank.row(0), tmp_path / "adapter", rank=rank)
    assert message in str(in_a_pass.value) and str(in_a_pass.value) == str(when_saved.value)
    assert not (tmp_path / "adapter").exists()


def test_there_is_a_rank_for_every_client():
    model = make_stacked(tiny_llama(), lora("llama"))
    with pytest.raises(ValueError, match="3 clients, but there are 1 ranks"):
        model.at_ranks(AdapterBank.repeat(model.initial, 3).tensors, [2])
