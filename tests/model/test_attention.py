"""Packed attention equals a loop of plain softmax attention over the sequences, forward and backward."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from engine import apart, clients_data, make_stacked, start_bank, steps_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_llama, tiny_model
from transformers import MistralConfig, ModernBertConfig
from transformers.masking_utils import chunked_causal_mask_function

from fedloom.client.local import LocalRules, train_locally
from fedloom.client.optimisers import sgd
from fedloom.data.encode import Tokens
from fedloom.model import attention, attention_scores, one_call
from fedloom.model.attention import PackedPass, packed_attention
from fedloom.model.buckets import plan_buckets
from fedloom.model.dropout import Draws
from fedloom.model.layout import Batch, Layout
from fedloom.model.mask_rules import mask_rule, window_rule
from fedloom.model.packing import build_pack

DIM = 4
ALL_PLAIN, ALL_FUSED = 10**9, -1
ONE_CALL = "one call"


def make_pack(lengths_of_clients, causal, shared):
    """A pass of sequences with these lengths, what they share left out; each sequence is a batch."""
    wave = [
        [
            Batch([Tokens([1] * shared + [5] * n, shared + n - 1, 0)], 1.0, (0, k, i))
            for i, n in enumerate(lengths)
        ]
        for k, lengths in enumerate(lengths_of_clients)
    ]
    return build_pack(wave, Layout(packed=True, causal=causal, prefix=shared, classify=True))


def random_tensors(pack, heads, key_heads, seed=0):
    """Queries, keys, values and the gradient of the output, ``[1, heads, tokens, dim]``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = pack.ids.numel()
    shapes = [(heads, tokens, DIM), (key_heads, tokens, DIM), (key_heads, tokens, DIM), (tokens, heads, DIM)]
    q, k, v, g = (torch.randn(1, *shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), g


def sequences_of(pack):
    """Token indices of each sequence that is attended to on its own: ``(queries, keys)``."""
    found = [
        (list(range(start, start + n)), list(range(p, p + pack.shared)) + list(range(start, start + n)))
        for start, n, p in zip(pack.starts, pack.lengths, pack.prefix_starts, strict=True)
    ]
    for p in sorted(set(pack.prefix_starts)) if pack.shared else []:
        found.append((list(range(p, p + pack.shared)), list(range(p, p + pack.shared))))
    return found


def slow_attention(q, k, v, pack, causal, window, scale, softcap=None, s_aux=None, bias=None):
    """One sequence and one head after the other."""
    heads, tokens = q.shape[1:3]
    group = heads // k.shape[1]
    out = torch.zeros(1, tokens, heads, v.shape[-1], dtype=q.dtype)
    for queries, keys in sequences_of(pack):
        distance = torch.tensor(
            [[len(keys) - len(queries) + i - j for j in range(len(keys))] for i in range(len(queries))]
        )
        seen = torch.ones(distance.shape, dtype=torch.bool)
        if causal:
            seen &= distance >= 0
        if window is not None:
            seen &= distance.abs() < window
        for head in range(heads):
            scores = q[0, head, queries] @ k[0, head // group, keys].T * scale
            if softcap is not None:
                scores = softcap * (scores / softcap).tanh()
            if bias is not None:
                first = len(keys) - len(queries)
                scores = scores + bias(torch.arange(first, len(keys))[:, None], torch.arange(len(keys)))[head]
            scores = scores.masked_fill(~seen, -torch.inf)
            if s_aux is not None:  # a key that everybody may look at and that has nothing to say
                scores = torch.cat([scores, s_aux[head].expand(len(queries), 1)], 1)
            weights = scores.softmax(-1)[:, : len(keys)]
            out[0, queries, head] = weights @ v[0, head // group, keys]
    return out


def uneven_kernel(query, key, value, ends, scale):
    """What FlashAttention's kernel for uneven lengths computes: the last query is beside the last key."""
    parts = []
    bounds = zip(pairwise(ends.query_bounds.tolist()), pairwise(ends.key_bounds.tolist()), strict=True)
    for (first, end), (first_key, end_key) in bounds:
        q, k, v = query[first:end], key[first_key:end_key], value[first_key:end_key]
        assert ends.longest[0] >= len(q) and ends.longest[1] >= len(k)
        distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        back, ahead = (n if n >= 0 else 10**9 for n in ends.window)
        k, v = (t.repeat_interleave(query.shape[1] // key.shape[1], 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        scores = scores.masked_fill((distance > back) | (-distance > ahead), -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(parts)


@contextmanager
def attending(keys):
    """Attention by plain products, by torch's fused kernel, or by one call for all sequences."""
    if keys != ONE_CALL:
        with patch.object(attention_scores, "_PLAIN_KEYS", keys):
            yield
        return
    with (
        patch.object(one_call, "knows", lambda query, value: True),
        patch.object(one_call, "kernel", uneven_kernel),
        patch.object(attention, "attend", side_effect=AssertionError("a bucket")),
    ):
        yield


def assert_equals_the_loop(
    lengths, *, causal=True, shared=0, window=None, heads=(2, 2), keys=ALL_PLAIN, scale=None, **changes
):
    """Outputs and gradients of all inputs, to rounding in float64."""
    pack = make_pack(lengths, causal, shared)
    q, k, v, g = random_tensors(pack, *heads)
    with attending(keys), PackedPass(pack, causal).running():
        fast, _ = packed_attention(torch.nn.Module(), q, k, v, None, scale, sliding_window=window, **changes)
    fast_gradients = torch.autograd.grad(fast, (q, k, v), g)
    slow = slow_attention(q, k, v, pack, causal, window, DIM**-0.5 if scale is None else scale, **changes)
    slow_gradients = torch.autograd.grad(slow, (q, k, v), g)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


SEVERAL_BUCKETS = [[2, 9, 3], [], [20, 21, 8], [1]]


@pytest.mark.parametrize(
    "keys", [ALL_PLAIN, ALL_FUSED, 10, ONE_CALL], ids=["plain", "fused", "both", ONE_CALL]
)
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("causal, shared", [(True, 0), (True, 5), (False, 0)])
def test_attention_equals_a_loop_over_sequences(causal, shared, heads, window, keys):
    assert_equals_the_loop(
        SEVERAL_BUCKETS, causal=causal, shared=shared, heads=heads, window=window, keys=keys
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 12), max_size=4), min_size=1, max_size=3).filter(any),
    causal=st.booleans(),
    shared=st.sampled_from([0, 1, 6]),
    window=st.sampled_from([None, 2, 5]),
    keys=st.sampled_from([ALL_PLAIN, ALL_FUSED, ONE_CALL]),
    scale=st.sampled_from([None, 0.3]),
)
@example(lengths=[[1]], causal=True, shared=0, window=None, keys=ALL_FUSED, scale=None)
@example(lengths=[[1], [1]], causal=False, shared=0, window=None, keys=ALL_FUSED, scale=None)
def test_attention_equals_a_loop_whatever_the_lengths(lengths, causal, shared, window, keys, scale):
    shared = shared if causal else 0
    assert_equals_the_loop(lengths, causal=causal, shared=shared, window=window, keys=keys, scale=scale)


@pytest.mark.parametrize(
    "changes",
    [
        {"softcap": 0.7},
        {"s_aux": torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)},
        {"bias": lambda query, key: torch.tensor([0.5, 0.1, 2.0, 0.0])[:, None, None] * (key - query).abs()},
        {"softcap": 0.7, "bias": lambda query, key: (key - query).expand(4, -1, -1)},
    ],
    ids=["soft cap", "sinks", "bias of positions", "both"],
)
@pytest.mark.parametrize("keys", [ALL_PLAIN, ALL_FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("causal, shared", [(True, 0), (True, 5), (False, 0)])
def test_scores_that_an_architecture_changes_equal_the_loop(causal, shared, keys, changes):
    assert_equals_the_loop(
        SEVERAL_BUCKETS, causal=causal, shared=shared, heads=(4, 2), window=4, keys=keys, **changes
    )


@pytest.mark.parametrize("causal", [True, False])
def test_more_matrices_than_a_grid_has_blocks_go_in_parts(causal):
    with patch.object(attention_scores, "MOST_BLOCKS", 3):
        assert_equals_the_loop(SEVERAL_BUCKETS, causal=causal, keys=ALL_FUSED)


def test_what_no_window_describes_is_not_attended_to_in_one_call():
    chunks = mask_rule(mask_function=chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long)))
    pack = make_pack(SEVERAL_BUCKETS, True, 0)
    assert one_call.plan_ends(pack, True, chunks) is None
    assert one_call.plan_ends(pack, True, window_rule(4)).window == (3, 0)
    assert one_call.plan_ends(pack, True, window_rule(100)).window == (-1, 0)
    assert one_call.plan_ends(make_pack(SEVERAL_BUCKETS, False, 0), False, window_rule(4)).window == (3, 3)


@pytest.mark.parametrize("most, whole", [(7, True), (6, False)])
def test_more_sequences_than_a_grid_has_blocks_are_not_attended_to_in_one_call(most, whole):
    """Seven of clients; where they share a prefix, those of three clients' prefixes too."""
    with patch.object(one_call, "MOST_BLOCKS", most):
        assert (one_call.plan_ends(make_pack(SEVERAL_BUCKETS, True, 0), True, None) is not None) == whole
        assert one_call.plan_ends(make_pack(SEVERAL_BUCKETS, True, 2), True, None) is None


def test_values_may_be_narrower_than_keys():
    pack = make_pack(SEVERAL_BUCKETS, True, 3)
    q, k, v, _ = random_tensors(pack, 2, 2)
    narrow = v[..., :3]
    with PackedPass(pack, True).running():
        fast, _ = packed_attention(torch.nn.Module(), q, k, narrow, None)
    torch.testing.assert_close(fast, slow_attention(q, k, narrow, pack, True, None, DIM**-0.5))


@pytest.mark.parametrize("shared", [0, 5])
def test_buckets_hold_every_sequence_once_and_waste_little(shared):
    pack = make_pack(SEVERAL_BUCKETS, True, shared)
    plan = plan_buckets(pack, True, None, 2, 2)
    assert len(plan.buckets) > 2
    starts = [int(s) for bucket in plan.buckets for s in bucket.starts]
    assert sorted(starts) == sorted({*pack.starts, *(pack.prefix_starts if shared else ())})
    for bucket in plan.buckets:
        assert int(bucket.lengths.min()) > bucket.longest / 2


def test_lengths_that_are_alike_share_a_bucket():
    plan = plan_buckets(make_pack([[10, 10], [9]], False, 0), False, None, 2, 2)
    assert [bucket.lengths.tolist() for bucket in plan.buckets] == [[10, 10, 9]]


def test_the_fused_kernel_is_used_beyond_the_limit_and_only_there():
    pack = make_pack([[4, 4, 30]], True, 0)
    q, k, v, _ = random_tensors(pack, 2, 2)
    fused = torch.nn.functional.scaled_dot_product_attention
    with (
        patch.object(attention_scores, "_PLAIN_KEYS", 10),
        patch.object(attention_scores.F, fused.__name__, wraps=fused) as spy,
        PackedPass(pack, True).running(),
    ):
        packed_attention(torch.nn.Module(), q, k, v, None)
    assert [call.args[1].shape[-2] for call in spy.call_args_list] == [30]


@pytest.mark.parametrize("unknown", [{"indices": torch.zeros(1)}, {"position_bias": torch.zeros(1)}], ids=str)
def test_attention_that_wants_what_nobody_heard_of_is_not_packed(unknown):
    pack = make_pack([[3]], True, 0)
    q, k, v, _ = random_tensors(pack, 2, 2)
    with PackedPass(pack, True).running(), pytest.raises(ValueError, match="cannot be packed"):
        packed_attention(torch.nn.Module(), q, k, v, None, **unknown)


def test_attention_with_a_mask_of_its_own_is_not_packed():
    pack = make_pack([[3]], True, 0)
    q, k, v, _ = random_tensors(pack, 2, 2)
    with PackedPass(pack, True).running(), pytest.raises(ValueError, match="a mask of its own"):
        packed_attention(torch.nn.Module(), q, k, v, torch.zeros(1, 1, 3, 3))


@pytest.mark.parametrize("shared", [0, 5])
def test_what_a_token_sees_is_the_architectures_own_rule(shared):
    """Chunks of 4 tokens, as transformers' own mask function describes them to those who make masks."""
    pack = make_pack(SEVERAL_BUCKETS, True, shared)
    q, k, v, _ = random_tensors(pack, 2, 2)
    rule = mask_rule(mask_function=chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long)))
    with PackedPass(pack, True).running():
        fast, _ = packed_attention(torch.nn.Module(), q, k, v, rule)
    for queries, keys in sequences_of(pack):
        first = len(keys) - len(queries)
        for i, query in enumerate(queries, start=first):
            seen = keys[i - i % 4 : i + 1]
            for head in range(2):
                weights = (k[0, head, seen] @ q[0, head, query] * DIM**-0.5).softmax(0)
                torch.testing.assert_close(fast[0, query, head], weights @ v[0, head, seen])


def kept_pairs(lengths_of_clients, probability=0.5, shared=0, keys=None, causal=True):
    """Attention's dropout factors, read off the output: values are one-hot, so outputs are probabilities."""
    pack = make_pack(lengths_of_clients, causal, shared)
    tokens = pack.ids.numel()
    q, k, _, _ = random_tensors(pack, 2, 1)
    k = torch.zeros_like(k)
    v = torch.eye(tokens, dtype=torch.float64)[None, None]
    draws = Draws(5, keys or pack.run_keys, pack.run_tokens, None, torch.device("cpu"))
    q, k = (torch.nn.functional.pad(x, (0, tokens - DIM)) for x in (q, k))

    def run(draws):
        with PackedPass(pack, causal, draws).running():
            return packed_attention(torch.nn.Module(), q, k, v, None, dropout=probability)[0][0]

    with_dropout, without = run(draws), run(None)
    assert ((without > 0).sum(-1) == torch.tensor([[i + 1] * 2 for i in pack.position_ids[0].tolist()])).all()
    return pack, torch.where(without > 0, with_dropout / without, torch.nan)


def test_dropout_of_attention_drops_single_pairs():
    _, factors = kept_pairs([[40, 41]], probability=0.25)
    found = factors[~factors.isnan()]
    assert float(((found - 4 / 3).abs() < 1e-9).double().mean()) + float((found == 0).double().mean()) == 1
    assert float((found == 0).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(factors[:, 0].nan_to_num(), factors[:, 1].nan_to_num()), "heads share a mask"


@pytest.mark.parametrize("shared", [0, 6])
def test_dropout_of_attention_does_not_depend_on_the_neighbours(shared):
    among, factors = kept_pairs([[7], [9, 13]], shared=shared)
    alone, factors_alone = kept_pairs([[], [9, 13]], shared=shared)
    first = among.units[0]
    assert torch.equal(factors[first:, :, first:].nan_to_num(-1), factors_alone.nan_to_num(-1))
    # And it does depend on whose batch it is.
    _, of_another = kept_pairs(
        [[], [9, 13]], shared=shared, keys=[(9, i) for i in range(len(alone.run_keys))]
    )
    assert not torch.equal(of_another.nan_to_num(-1), factors_alone.nan_to_num(-1))


def tiny_window(kind):
    sizes = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    if kind == "mistral":
        return tiny_model(MistralConfig(**sizes, num_key_value_heads=2, sliding_window=4), None).double()
    special = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
    return tiny_model(ModernBertConfig(**sizes, **special, local_attention=6), 3).double()


@pytest.mark.parametrize("kind", ["mistral", "modernbert"])
def test_a_model_that_looks_through_a_window_gives_the_same_packed_and_padded(kind):
    lm = kind == "mistral"
    config = LoraConfig(
        task_type="CAUSAL_LM" if lm else "SEQ_CLS",
        r=2,
        target_modules=["q_proj", "v_proj"] if lm else ["Wqkv"],
    )
    data, rows = clients_data((1, 2)), []
    for packed, keys in ((None, ALL_PLAIN), (False, ALL_PLAIN), (None, ONE_CALL)):
        model = make_stacked(tiny_window(kind), config, data, packed=packed)
        assert model.layout.packed == (packed is None)
        work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]
        with attending(keys):
            rows.append(train_locally(model, start_bank(model, 2), work, LocalRules(sgd(0.1))).bank)
    for k in range(2):
        assert apart(rows[0].row(k), start_bank(model, 1).row(0)) > 1e-4
        assert apart(rows[0].row(k), rows[1].row(k)) < 1e-6  # both round to float32 in their norms
        assert apart(rows[0].row(k), rows[2].row(k)) < 1e-6


def test_long_sequences_through_the_fused_kernel_train_the_same(monkeypatch, full_precision):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    data, banks = clients_data((2, 1)), []
    for keys in (ALL_PLAIN, ALL_FUSED):
        monkeypatch.setattr(attention_scores, "_PLAIN_KEYS", keys)
        model = make_stacked(tiny_llama().double(), config, data)
        work = [steps_of(k, client, model.layout) for k, client in enumerate(data)]
        banks.append(train_locally(model, start_bank(model, 2), work, LocalRules(sgd(0.1))).bank)
    for k in range(2):
        assert apart(banks[0].row(k), banks[1].row(k)) < 1e-12


def test_the_kernel_is_tried_before_it_is_trusted(monkeypatch):
    """Where torch's computes something else, or fails, nobody calls it; it may be tried while validating."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    def works(kernel):
        monkeypatch.setattr(one_call, "kernel", kernel)
        one_call._works.cache_clear()
        with torch.no_grad():
            return one_call._works(torch.device("cpu"), torch.bfloat16)

    def first_query_beside_first_key(query, key, value, ends, scale):
        return uneven_kernel(query, key.flip(0), value.flip(0), ends, scale)

    def without_windows(query, key, value, ends, scale):
        ahead = ends.window[1]
        return uneven_kernel(query, key, value, replace(ends, window=(-1, min(ahead, 0))), scale)

    def missing(query, key, value, ends, scale):
        raise RuntimeError("not compiled with CUDA")

    assert works(uneven_kernel)
    assert not works(first_query_beside_first_key)
    assert not works(without_windows)
    assert not works(missing)
    one_call._works.cache_clear()
